"""A cache of transformers' that keeps keys and values in half precision, as the compiled step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class HalfCache(DynamicCache):
    """For a prompt's only pass, in which attention reads what was kept.

    Without it a comparison of rounded activations shows little: a difference of a last digit of
    half precision moves some of them to the next code.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> Any:
        kept = super().update(key_states, value_states, *more, **named)
        return tuple(tensor.to(torch.float16).to(tensor.dtype) for tensor in kept)
