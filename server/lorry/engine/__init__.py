"""The engine: who runs in this step, and the one thread that runs it."""
