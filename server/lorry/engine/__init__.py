"""The engine: chooses the rows of each step and runs them in one thread."""
