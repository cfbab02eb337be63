"""Deltas that are found from the base's own weight: by its singular vectors, or in a basis.

What such a method trains means something only beside the weight that it was taken from, so all
of it is computed when the adapter meets the base, and once. A decomposition takes its time: about
two seconds for a weight of [2048, 2048] on one core, and eight times that for twice the width.

Letters as in `effects`: M tokens of one adapter, I in, O out, R rank, L of a tail, N numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorry_adapters.lora.effects import Delta, EffectTarget, Indivisible


def tail(weight_OI: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(left `[O, L]`, right `[L, I]`): their product is what the `count` smallest singular
    values of the weight add to it. What sign its vectors have makes no difference.

    By the decomposition that PEFT uses, in fp32 as there: where two singular values at the cut
    are close, an exact one would differ from it by more than rounding.
    """
    u_OX, s_X, v_XI = torch.linalg.svd(weight_OI, full_matrices=False)
    first = s_X.shape[0] - count
    return u_OX[:, first:] * s_X[first:], v_XI[first:]


@dataclass(frozen=True, slots=True, eq=False)
class WithoutTail(Indivisible):
    """KaSA's base: without the smallest singular values. At any scale, as PEFT's `set_scale`
    leaves the base alone: arXiv:2412.06071."""

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
    """OSF: other numbers in place of the weight's smallest singular values and their vectors;
    the largest are as they were: arXiv:2504.07097."""

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
            change_IO = base.held((left_OX @ right_XI).T)
            return lambda x_MI, y, scale_M1: (x_MI @ change_IO) * scale_M1
        left_XO, right_IX = base.held(left_OX.T), base.held(right_XI.T)
        return lambda x_MI, y, scale_M1: ((x_MI @ right_IX) @ left_XO) * scale_M1


@dataclass(frozen=True, slots=True, eq=False)
class Turned(Indivisible):
    """PSOFT: the weight's largest singular vectors, turned among themselves.

    W V' -> U sqrt(S) (R - 1) sqrt(S) V' is added, or U S (R - 1) V': arXiv:2505.11235.
    R belongs to the signs that the vectors have, which are whatever the decomposition gives:
    the same routine on the same weight must be used, so it is PEFT's, on the CPU.
    """

    turn_RR: Tensor
    """R - 1."""
    halved: bool
    """sqrt(S) on both sides."""
    passes: int | None
    """Of a decomposition by random directions; None: a full one."""
    seed: int
    """Of the directions."""

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
    """What `torch.svd_lowrank` gives after `torch.manual_seed(seed)`, with a generator of its
    own: Halko, Martinsson, Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1."""
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
    """V and the places of S, which all linears of one role share."""

    v_II: Tensor
    rows_N: Tensor
    columns_N: Tensor

    @property
    def nbytes(self) -> int:
        return self.v_II.nbytes + self.rows_N.nbytes + self.columns_N.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class InBasis(Indivisible):
    """FRoD: W' = U (diag(l) + S) V', where U's columns are those of W V'^-1, each of length 1,
    and S has a number at each of N places."""

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
            # As PEFT does it with a basis that is none.
            u_OI = weight_OI @ torch.linalg.pinv(v_II, rtol=1e-6).T
        u_OI = torch.nn.functional.normalize(u_OI, dim=0)
        inner_II = torch.diag(self.lengths_I.double())
        places = self.basis.rows_N.long(), self.basis.columns_N.long()
        inner_II.index_put_(places, self.values_N.double(), accumulate=True)
        change_IO = base.held((u_OI @ inner_II @ v_II.T - weight_OI).T)
        return lambda x_MI, y, scale_M1: (x_MI @ change_IO) * scale_M1
