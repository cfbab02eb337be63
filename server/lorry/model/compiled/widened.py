"""A vocabulary of any size: the head, and what adapters do to it, up to whole blocks of outputs.

The outputs beyond are zero, and their logits are minus infinity once everything is added.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lorry.model.compiled.pack import BLOCK
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, OutwardGain, Shift


def widened(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def widened_pair(pair: LoraPair) -> LoraPair:
    return replace(pair, b_OR=_rows(pair.b_OR, 0))


def widened_delta(delta: Delta) -> Delta:
    match delta:
        case BoundDora():
            return replace(
                delta,
                b_OR=_rows(delta.b_OR, 0),
                # Outputs of zero keep their length.
                magnitude_O=_rows(delta.magnitude_O, 1),
                w_O=_rows(delta.w_O, 1),
                c_O=_rows(delta.c_O, 0),
                d_O=_rows(delta.d_O, 0),
            )
        case OutwardGain():
            return replace(delta, more_O=_rows(delta.more_O, 0))
        case Shift():
            return replace(delta, shift_O=_rows(delta.shift_O, 0))
        case _:
            return delta


def _rows(values: Tensor, value: int) -> Tensor:
    """More of them, with that value."""
    missing = widened(len(values)) - len(values)
    if not missing:
        return values
    return torch.cat([values, values.new_full((missing, *values.shape[1:]), value)])
