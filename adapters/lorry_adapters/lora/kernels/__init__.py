"""The arithmetic of a LoRA delta over a batch of tokens with mixed adapters."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lorry_adapters.lora.plan import Plan


class Kernel(Protocol):
    """Adds the deltas of a plan's pairs to `y_TO` in place: what a module with slots calls."""

    def __call__(
        self,
        y_TO: Tensor,
        x_TI: Tensor,
        a_SRI: Tensor,
        b_SRO: Tensor,
        rank_S: Tensor,
        plan: Plan,
        ranks: tuple[int, ...],
    ) -> None:
        """`rank_S`, int32 on the device, and `ranks`: what each slot holds of this module."""
        ...
