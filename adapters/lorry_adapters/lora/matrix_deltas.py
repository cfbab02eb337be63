"""Bound deltas that consist of matrices.

Like those of `vector_deltas` they expose their numbers, so that a step that does not call functions
can apply them (`lorry.model.compiled`).

Letters: M tokens of one adapter, I in, O out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER: Final = -1e30
"""The logit of a token that must never be drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnLinear:
    """The output of another linear instead of the base's.

    It may have fewer outputs than the base: a head whose vocabulary lacks the base's last tokens.
    """

    weight_OI: Tensor
    """As stored, in host memory."""
    bias_O: Tensor | None
    dtype: torch.dtype
    device: torch.device
    _held: list[tuple[Tensor, Tensor | None]] = field(default_factory=list, repr=False)

    def held(self) -> tuple[Tensor, Tensor | None]:
        """Return both on the device. They are made at the first call, which never comes if the
        compiled step applies this adapter."""
        if not self._held:
            bias_O = None if self.bias_O is None else self.bias_O.to(self.device, self.dtype)
            weight_OI = self.weight_OI.contiguous().to(self.device, self.dtype)
            self._held.append((weight_OI, bias_O))
        return self._held[0]

    def __call__(self, x_MI: Tensor, y_MO: Tensor, scale: Tensor) -> Tensor:
        mine_MO = F.linear(x_MI, *self.held())
        outputs = mine_MO.shape[1]
        if outputs == y_MO.shape[1]:
            return mine_MO - y_MO
        # In effect minus infinity, which a step would report as an overflow. A sum of two such
        # deltas is still finite.
        never = max(torch.finfo(y_MO.dtype).min / 4, NEVER)
        delta_MO = torch.full_like(y_MO, never)
        delta_MO[:, :outputs] = mine_MO - y_MO[:, :outputs]
        return delta_MO
