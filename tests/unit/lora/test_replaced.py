"""Rows of a table that an adapter has trained: which tokens get them, and at what cost."""

from __future__ import annotations

import torch
from torch import nn

from lorry_adapters.lora.effects import Base
from lorry_adapters.lora.layers import plain_weight
from lorry_adapters.lora.replaced import TokenRows

TABLE = nn.Embedding(50, 4)


def base() -> Base:
    return Base(TABLE, lambda: plain_weight(TABLE), torch.float32, torch.device("cpu"))


def test_the_last_row_of_a_token_counts_and_others_are_the_base_s() -> None:
    ids_K, rows_KH = torch.tensor([9, 3, 9, 40]), torch.randn(4, 4)
    delta = TokenRows(ids_K, rows_KH).bind(base())
    assert delta is not None
    ids_M = torch.tensor([0, 3, 9, 10, 40, 49, 3])
    y_MH = TABLE(ids_M).detach()
    expected_MH = y_MH.clone()
    for at, row in ((1, 1), (2, 2), (4, 3), (6, 1)):
        expected_MH[at] = rows_KH[row]
    found_MH = y_MH + delta(ids_M, y_MH, torch.ones(1, 1))
    assert torch.allclose(found_MH, expected_MH, atol=1e-6)


def test_rows_for_no_token_change_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert TokenRows(none, torch.zeros(0, 4)).bind(base()) is None


def test_a_row_for_every_token_of_a_long_prompt_takes_no_memory_for_each_of_both() -> None:
    # Token by row these are 10^11 comparisons.
    every = 10**6
    delta = TokenRows(torch.arange(every), torch.zeros(every, 1)).bind(base())
    assert delta is not None
    ids_M = torch.arange(10**5)
    y_MH = torch.ones(len(ids_M), 1)
    assert not (y_MH + delta(ids_M, y_MH, torch.ones(1, 1))).any()
