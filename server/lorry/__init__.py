"""Lorry serves one quantized base model and many LoRA adapters, every mix of them in one batch."""

__version__ = "0.1.0"
