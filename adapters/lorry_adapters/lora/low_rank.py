"""Low-rank factorization of a matrix, where it has a low rank.

Some methods that change a whole weight change it in few directions, such as HRA's reflections or
a pair behind a nonlinear function. Two small matrices then hold the same change and need a
fraction of the memory and time.

Randomized range finder: Halko, Martinsson, Tropp, arXiv:0909.4061, algorithm 4.1.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MAX_RANK: Final = 64
_SPARE: Final = 8
"""Extra directions. Without them a rank of exactly `MAX_RANK` looks like a larger one."""
_ROUNDING: Final = 1e-6
"""Relative rounding error of the matrix."""


def factors(matrix_OI: Tensor, size: float) -> tuple[Tensor, Tensor] | None:
    """Return B `[O, R]` and A `[R, I]`, whose product is the matrix up to rounding.

    Returns None if R would exceed `MAX_RANK`, or if the factors would be larger than the matrix.
    `size`: norm of the matrices whose difference this matrix is, as it carries their rounding.
    """
    outputs, inputs = matrix_OI.shape
    most = min(MAX_RANK, outputs * inputs // (2 * (outputs + inputs)))
    # In double precision: further rounding of the factors would be visible in outputs.
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
    # Split the strength evenly, so that neither factor loses precision.
    half_R = strength_K[:rank].sqrt()
    b_OR = (basis_OK @ left_KK[:, :rank]) * half_R
    return b_OR.to(matrix_OI.dtype), (right_KI[:rank] * half_R[:, None]).to(matrix_OI.dtype)
