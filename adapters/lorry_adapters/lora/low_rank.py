"""Whether a matrix is the product of two of low rank, and which.

Some methods that change a whole weight change it by few directions: HRA's reflections, a
pair behind a non-linear function. Then two low-rank matrices are the same change, at a fraction
of the memory and of the time.

Found with random directions: Halko, Martinsson, Tropp, arXiv:0909.4061, algorithm 4.1.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MAX_RANK: Final = 64
_SPARE: Final = 8
"""Directions more than are kept: a rank of just `MAX_RANK` would not be told from a larger one."""
_ROUNDING: Final = 1e-6
"""Of what the matrix was rounded in."""


def factors(matrix_OI: Tensor, size: float) -> tuple[Tensor, Tensor] | None:
    """(B `[O, R]`, A `[R, I]`) with B A the matrix but for rounding; None where R would be over
    `MAX_RANK`, or two factors larger than the matrix.

    `size`: norm of the numbers whose difference the matrix is, and whose rounding it has.
    """
    outputs, inputs = matrix_OI.shape
    most = min(MAX_RANK, outputs * inputs // (2 * (outputs + inputs)))
    # In double: what the factors lose beyond the matrix's own rounding would show in answers.
    exact_OI = matrix_OI.double()
    directions_IK = torch.randn(
        inputs, most + _SPARE, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    basis_OK = torch.linalg.qr(exact_OI @ directions_IK.to(exact_OI.device)).Q
    core_KI = basis_OK.T @ exact_OI
    bound = _ROUNDING * size
    if float((exact_OI - basis_OK @ core_KI).norm()) > bound:
        return None
    left_KK, strength_K, right_KI = torch.linalg.svd(core_KI, full_matrices=False)
    rank = int((strength_K > bound).sum())
    if rank > most:
        return None
    # Both halves of one size, so that neither loses digits to the other's.
    half_R = strength_K[:rank].sqrt()
    b_OR = (basis_OK @ left_KK[:, :rank]) * half_R
    return b_OR.to(matrix_OI.dtype), (right_KI[:rank] * half_R[:, None]).to(matrix_OI.dtype)
