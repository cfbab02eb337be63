"""A weight changed at some places: once, twice at the same place, and by parts of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorry_adapters.lora.effects import EffectTarget
from lorry_adapters.lora.sparse import Sparse

ROWS = torch.tensor([0, 4, 2, 2], dtype=torch.int32)
COLUMNS = torch.tensor([1, 0, 2, 2], dtype=torch.int32)
VALUES = torch.tensor([1.0, -2.0, 3.0, 0.5])
DENSE = torch.zeros(5, 3)
DENSE[0, 1], DENSE[4, 0], DENSE[2, 2] = 1.0, -2.0, 3.5
X = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


def delta(sparse: Sparse, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    base = EffectTarget(nn.Linear(3, 5), lambda: torch.zeros(5, 3), dtype, torch.device("cpu"))
    y_MO = torch.zeros(7, sparse.shape[0], dtype=dtype)
    return sparse.bind(base)(X.to(dtype), y_MO, scale)


def test_numbers_at_one_place_add_up() -> None:
    sparse = Sparse(ROWS, COLUMNS, VALUES, (5, 3))
    scale_M1 = torch.linspace(0, 2, 7)[:, None]
    assert torch.allclose(delta(sparse, scale_M1), scale_M1 * (X @ DENSE.T))


def test_a_part_of_the_outputs() -> None:
    part = Sparse(ROWS, COLUMNS, VALUES, (5, 3)).cut(2, 5)
    assert torch.allclose(delta(part, torch.ones(1, 1)), X @ DENSE[2:5].T)


def test_half_precision_comes_out_as_it_went_in() -> None:
    found = delta(Sparse(ROWS, COLUMNS, VALUES, (5, 3)), torch.ones(1, 1), torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), X @ DENSE.T, atol=0.05)
