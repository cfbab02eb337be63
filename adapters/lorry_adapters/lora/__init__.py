"""Adapters as tensors: parsed, verified, merged, placed in slots and applied to a batch."""
