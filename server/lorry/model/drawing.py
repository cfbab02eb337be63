"""Which tokens hold a mass of probability, and on which token a number falls.

`TorchDrawing` says what is meant, in PyTorch's operations, on any device; on a CPU
`lorry.model.compiled.compiled_drawing` gives the same bits in a small part of the time.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

PART = 1024
"""Tokens that usually hold the mass."""

ROUNDING = 2**-21
"""More than two cumulative sums in fp32, up to 1, are off together."""


class Drawing(Protocol):
    """Called by one thread, a row at a time."""

    def keep_mass(
        self, probs_V: Tensor, preference_V: Tensor, mass: float, *, floor: float
    ) -> Tensor:
        """`probs_V`, 1 in all, of the most preferred tokens that first reach `mass`, at least
        one, and 0 elsewhere. Of tokens that are preferred alike the first come first. None
        with a preference up to `floor` may be among them."""
        ...

    def draw(self, weights_V: Tensor, number: float) -> int:
        """The token whose share of the unit `number`, in [0, 1), falls on: the first whose
        cumulative sum exceeds it. A token of weight 0 never is."""
        ...


class TorchDrawing:
    def keep_mass(
        self, probs_V: Tensor, preference_V: Tensor, mass: float, *, floor: float
    ) -> Tensor:
        ids_M = ((preference_V > floor) & (probs_V > 0)).nonzero().flatten()
        preference_M = preference_V[ids_M]
        kept_V = torch.zeros_like(probs_V)
        if len(ids_M) > 2 * PART:
            # topk cuts equals anywhere: those at its end are left out.
            likely_M = preference_M > preference_M.topk(PART).values[-1]
            kept_K, reached = _first(probs_V, ids_M[likely_M], preference_M[likely_M], mass)
            if reached:
                kept_V[kept_K] = probs_V[kept_K]
                return kept_V
        kept_K, _ = _first(probs_V, ids_M, preference_M, mass)
        kept_V[kept_K] = probs_V[kept_K]
        return kept_V

    def draw(self, weights_V: Tensor, number: float) -> int:
        probs_V = (weights_V / weights_V.sum()).double()
        cumulative_V = probs_V.cumsum(0)
        at = number * float(cumulative_V[-1])
        # right=True: a token of probability 0 is never the first to exceed `at`.
        drawn = int(torch.searchsorted(cumulative_V, at, right=True))
        if drawn >= probs_V.shape[0]:
            drawn = int(probs_V.nonzero()[-1])
        return drawn


def _first(
    probs_V: Tensor, ids_M: Tensor, preference_M: Tensor, mass: float
) -> tuple[Tensor, bool]:
    """Which of some tokens are kept, and whether none that follow them can be."""
    order_M = ids_M[preference_M.argsort(descending=True, stable=True)]
    probs_M = probs_V[order_M]
    cumulative_M = probs_M.cumsum(0)
    before_M = cumulative_M - probs_M
    reached = len(order_M) > 0 and float(cumulative_M[-1]) >= mass + ROUNDING
    return order_M[~(before_M >= mass)], reached
