"""Bound deltas that consist of matrices.

Like those of `vector_deltas` they expose their numbers, so that a step that does not call functions
can apply them (`lorry.model.compiled`).

Letters: M tokens of one adapter, I in, O out, R rank, N blocks of S inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorry_adapters.lora.vector_deltas import Delta, Held, kept_on_device

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
    _held: Held = field(default_factory=list, repr=False)

    def held(self) -> tuple[Tensor, ...]:
        """Return the weight, and the bias if there is one, on the device."""
        both = (self.weight_OI,) if self.bias_O is None else (self.weight_OI, self.bias_O)
        return kept_on_device(self._held, self.device, self.dtype, *both)

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


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """The sum of several deltas of one effect."""

    parts: tuple[Delta, ...]

    def __call__(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return sum((part(x, y, scale) for part in self.parts), start=torch.zeros_like(y))


def apart(deltas: Sequence[Delta]) -> tuple[Delta, ...]:
    """Return the parts of which their sum consists."""
    found: list[Delta] = []
    for delta in deltas:
        found.extend(delta.parts if isinstance(delta, Together) else (delta,))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class BoundPair:
    """s B A x: a change that turned out to have a low rank."""

    a_RI: Tensor
    b_OR: Tensor
    """fp32, in host memory."""
    dtype: torch.dtype
    device: torch.device
    _held: Held = field(default_factory=list, repr=False)

    def __call__(self, x_MI: Tensor, y: Tensor, scale_M1: Tensor) -> Tensor:
        a_IR, b_RO = kept_on_device(self._held, self.device, self.dtype, self.a_RI.T, self.b_OR.T)
        return ((x_MI @ a_IR) @ b_RO) * scale_M1


@dataclass(frozen=True, slots=True, eq=False)
class BoundChange:
    """s D x: any change of a weight."""

    change_OI: Tensor
    """On the device, in its dtype."""

    def __call__(self, x_MI: Tensor, y: Tensor, scale_M1: Tensor) -> Tensor:
        return (x_MI @ self.change_OI.T) * scale_M1


@dataclass(frozen=True, slots=True, eq=False)
class BoundTurn:
    """base(x + s M x) - base(x), M a matrix of blocks along its diagonal: a rotation of the input,
    less the identity."""

    blocks_NSS: Tensor
    """M, fp32: what each input of a block (last) adds to each (second)."""
    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    _held: Held = field(default_factory=list, repr=False)

    def __call__(self, x_MI: Tensor, y_MO: Tensor, scale_M1: Tensor) -> Tensor:
        (blocks_NSS,) = kept_on_device(self._held, self.device, self.dtype, self.blocks_NSS)
        blocks, size, _ = blocks_NSS.shape
        x_MNS = x_MI.view(-1, blocks, size)
        added_MI = torch.einsum("mnj,nij->mni", x_MNS, blocks_NSS).flatten(1)
        # As in `InwardGain`: a quantized base rounds the input that it is given.
        turned_MO: Tensor = self.module(x_MI + scale_M1 * added_MI)
        return turned_MO - y_MO


@dataclass(frozen=True, slots=True, eq=False)
class BoundKronecker:
    """s (w1 (x) w2) x: x as a [c, d] table, w2 along its rows and w1 along its columns."""

    w1_ac: Tensor
    """fp32, the trained strength included."""
    w2_bd: Tensor
    dtype: torch.dtype
    device: torch.device
    _held: Held = field(default_factory=list, repr=False)

    def __call__(self, x_MI: Tensor, y: Tensor, scale_M1: Tensor) -> Tensor:
        w1_ac, w2_db = kept_on_device(self._held, self.device, self.dtype, self.w1_ac, self.w2_bd.T)
        rows_Mcb = x_MI.view(-1, w1_ac.shape[1], w2_db.shape[0]) @ w2_db
        return (w1_ac @ rows_Mcb).flatten(1) * scale_M1


@dataclass(frozen=True, slots=True, eq=False)
class BoundShared:
    """s b * (B (d * (A x))), A and B shared with other linears and cut to this one's widths."""

    a_RI: Tensor
    b_OR: Tensor
    """On the device, whole."""
    d_R: Tensor
    b_O: Tensor

    def __call__(self, x_MI: Tensor, y: Tensor, scale_M1: Tensor) -> Tensor:
        hidden_MR = (x_MI @ self.a_RI[:, : x_MI.shape[1]].T) * self.d_R
        return (hidden_MR @ self.b_OR[: len(self.b_O)].T) * (self.b_O * scale_M1)
