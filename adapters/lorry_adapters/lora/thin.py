"""Whether a matrix is the product of two thin ones, and which.

Some methods that change a whole weight change it by few directions: HRA's reflections, a
pair behind a non-linear function. Then two thin matrices are the same change, at a fraction
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
    directions_IK = torch.randn(
        inputs, most + _SPARE, generator=torch.Generator().manual_seed(3)
    ).to(matrix_OI)
    basis_OK = torch.linalg.qr(matrix_OI @ directions_IK).Q
    core_KI = basis_OK.T @ matrix_OI
    bound = _ROUNDING * size
    if float((matrix_OI - basis_OK @ core_KI).norm()) > bound:
        return None
    left_KK, strength_K, right_KI = torch.linalg.svd(core_KI, full_matrices=False)
    rank = int((strength_K > bound).sum())
    if rank > most:
        return None
    return (basis_OK @ left_KK[:, :rank]) * strength_K[:rank], right_KI[:rank]
