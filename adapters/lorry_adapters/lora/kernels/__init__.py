"""The arithmetic of a LoRA delta over a batch of tokens with mixed adapters."""
