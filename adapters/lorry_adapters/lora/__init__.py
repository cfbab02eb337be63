"""Adapters as tensors: parsed, verified, placed in slots and applied to a batch."""
