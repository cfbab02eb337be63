"""A matrix of low rank is found out, at whatever its rounding hides; others are left alone."""

from __future__ import annotations

import pytest
import torch

from lorry_adapters.lora.low_rank import MAX_RANK, factors


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.mark.parametrize("rank", [0, 1, 7, MAX_RANK])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_two_thin_ones_are_the_matrix(rank: int, shape: tuple[int, int]) -> None:
    weight_OI = drawn(*shape)
    # As it is measured: the difference of two weights, each rounded.
    change_OI = (weight_OI + drawn(shape[0], rank) @ drawn(rank, shape[1])) - weight_OI
    found = factors(change_OI, float(weight_OI.norm() + change_OI.norm()))
    assert found is not None
    b_OR, a_RI = found
    assert (b_OR.shape, a_RI.shape) == ((shape[0], rank), (rank, shape[1]))
    assert torch.allclose(b_OR @ a_RI, change_OI, atol=1e-4)


@pytest.mark.parametrize("rank", [MAX_RANK + 1, MAX_RANK + 9, 300])
def test_more_than_that_stays_whole(rank: int) -> None:
    change_OI = drawn(301, rank) @ drawn(rank, 400)
    assert factors(change_OI, float(change_OI.norm())) is None


def test_two_that_would_be_larger_are_not_made() -> None:
    change_OI = drawn(8, 3) @ drawn(3, 8)
    assert factors(change_OI, float(change_OI.norm())) is None
