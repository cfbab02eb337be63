"""Deltas that depend on the base's own weight: on its singular vectors, or on a basis.

The trained numbers of such a method are meaningful only with the weight that they were trained on,
so the delta is computed once, when the adapter is bound to the base. A decomposition takes time:
about two seconds for a weight of [2048, 2048] on one core, and eight times that for twice the
width.

Letters as in `effects`: M tokens of one adapter, I in, O out, R rank, L of a tail, N numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorry_adapters.lora.effects import Delta, EffectTarget, Indivisible
from lorry_adapters.lora.matrix_deltas import BoundChange, BoundPair


def tail(weight_OI: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (left `[O, L]`, right `[L, I]`), whose product is the contribution of the `count`
    smallest singular values to the weight. The signs of the vectors do not matter.

    Uses PEFT's decomposition, in fp32 like PEFT: if two singular values at the cut are close, an
    exact one would differ from it by more than rounding.
    """
    u_OX, s_X, v_XI = torch.linalg.svd(weight_OI, full_matrices=False)
    first = s_X.shape[0] - count
    return u_OX[:, first:] * s_X[first:], v_XI[first:]


@dataclass(frozen=True, slots=True, eq=False)
class WithoutTail(Indivisible):
    """KaSA's base, without the smallest singular values. It applies at any scale, as PEFT's
    `set_scale` does not affect the base: arXiv:2412.06071."""

    count: int

    @property
    def nbytes(self) -> int:
        return 0

    def bind(self, base: EffectTarget) -> Delta:
        left_OL, right_LI = tail(base.weight(), self.count)
        left_LO, right_IL = base.held(-left_OL.T), base.held(right_LI.T)
        return lambda x_MI, y, scale: (x_MI @ right_IL) @ left_LO


@dataclass(frozen=True, slots=True, eq=False)
class NewTail(Indivisible):
    """OSF: replaces the weight's smallest singular values and their vectors; the largest are
    unchanged:
    arXiv:2504.07097."""

    u_OL: Tensor
    s_L: Tensor
    v_LI: Tensor

    @property
    def nbytes(self) -> int:
        return self.u_OL.nbytes + self.s_L.nbytes + self.v_LI.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        weight_OI = base.weight()
        u_OL, s_L, v_LI = (
            one.to(weight_OI.device).float() for one in (self.u_OL, self.s_L, self.v_LI)
        )
        old_OL, right_LI = tail(weight_OI, s_L.shape[0])
        left_OX = torch.cat([u_OL * s_L, -old_OL], dim=1)
        right_XI = torch.cat([v_LI, right_LI])
        if left_OX.numel() + right_XI.numel() >= weight_OI.numel():
            return BoundChange(base.held(left_OX @ right_XI))
        return BoundPair(right_XI, left_OX, base.dtype, base.device)


@dataclass(frozen=True, slots=True, eq=False)
class Turned(Indivisible):
    """PSOFT: rotates the weight's largest singular vectors among themselves.

    Adds W V' -> U sqrt(S) (R - 1) sqrt(S) V', or U S (R - 1) V': arXiv:2505.11235. R depends on the
    signs of the vectors, which are arbitrary results of the decomposition. So the same routine must
    be used on the same weight: PEFT's, on the CPU.
    """

    turn_RR: Tensor
    """R - 1."""
    halved: bool
    """sqrt(S) on both sides."""
    passes: int | None
    """Passes of a randomized decomposition; None for a full one."""
    seed: int
    """The seed of its directions."""

    @property
    def nbytes(self) -> int:
        return self.turn_RR.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        r = self.turn_RR.shape[0]
        weight_OI = base.weight().cpu()
        if self.passes is None:
            u_OR, s_R, v_RI = torch.linalg.svd(weight_OI, full_matrices=False)
        else:
            u_OR, s_R, v_RI = _by_directions(weight_OI, r, self.passes, self.seed)
        u_OR, s_R, v_RI = u_OR[:, :r], s_R[:r], v_RI[:r]
        if self.halved:
            left_OR, right_RI = u_OR * s_R.sqrt(), v_RI * s_R.sqrt()[:, None]
        else:
            left_OR, right_RI = u_OR * s_R, v_RI
        left_RO = base.held((left_OR @ self.turn_RR.float()).T)
        right_IR = base.held(right_RI.T)
        return lambda x_MI, y, scale_M1: ((x_MI @ right_IR) @ left_RO) * scale_M1


def _by_directions(
    weight_OI: Tensor, rank: int, passes: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of `torch.svd_lowrank` after `torch.manual_seed(seed)`, with a generator of
    its own: Halko, Martinsson, Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1."""
    wide = weight_OI.shape[0] < weight_OI.shape[1]
    tall_XS = weight_OI.T if wide else weight_OI
    generator = torch.Generator().manual_seed(seed)
    directions_SR = torch.randn(tall_XS.shape[1], rank, generator=generator)
    basis_XR = torch.linalg.qr(tall_XS @ directions_SR).Q
    for _ in range(passes):
        back_SR = torch.linalg.qr(tall_XS.T @ basis_XR).Q
        basis_XR = torch.linalg.qr(tall_XS @ back_SR).Q
    u_RR, s_R, v_RS = torch.linalg.svd(basis_XR.T @ tall_XS, full_matrices=False)
    u_XR = basis_XR @ u_RR
    return (v_RS.T, s_R, u_XR.T) if wide else (u_XR, s_R, v_RS)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """V and the indices of S, which all linears of one role share."""

    v_II: Tensor
    rows_N: Tensor
    columns_N: Tensor

    @property
    def nbytes(self) -> int:
        return self.v_II.nbytes + self.rows_N.nbytes + self.columns_N.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class InBasis(Indivisible):
    """FRoD: W' = U (diag(l) + S) V'. U's columns are those of W V'^-1, scaled to length 1, and S
    has a number at each of N places."""

    basis: Basis
    lengths_I: Tensor
    values_N: Tensor

    @property
    def nbytes(self) -> int:
        return self.lengths_I.nbytes + self.values_N.nbytes

    @property
    def shared(self) -> tuple[Basis, ...]:
        """Held once for the whole adapter."""
        return (self.basis,)

    def bind(self, base: EffectTarget) -> Delta:
        weight_OI = base.weight().cpu().double()
        v_II = self.basis.v_II.double()
        try:
            u_OI = torch.linalg.solve(v_II, weight_OI.T).T
        except RuntimeError:
            # Like PEFT, with a V that may not be invertible.
            u_OI = weight_OI @ torch.linalg.pinv(v_II, rtol=1e-6).T
        u_OI = torch.nn.functional.normalize(u_OI, dim=0)
        inner_II = torch.diag(self.lengths_I.double())
        places = self.basis.rows_N.long(), self.basis.columns_N.long()
        inner_II.index_put_(places, self.values_N.double(), accumulate=True)
        return BoundChange(base.held(u_OI @ inner_II @ v_II.T - weight_OI))
