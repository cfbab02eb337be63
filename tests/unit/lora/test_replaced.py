"""What an adapter puts in place of the base's numbers, and where that is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorry_adapters.lora.effects import Dora, EffectTarget
from lorry_adapters.lora.layers import plain_weight
from lorry_adapters.lora.replaced import EmbeddingDora, TokenRows

TABLE = nn.Embedding(50, 4)


def base() -> EffectTarget:
    return EffectTarget(TABLE, lambda: plain_weight(TABLE), torch.float32, torch.device("cpu"))


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


@pytest.mark.parametrize("kind", [Dora, EmbeddingDora])
def test_norms_are_taken_on_the_device_of_the_base(kind: type[Dora | EmbeddingDora]) -> None:
    # A file's numbers lie on the host, and no operation takes both; meta is a device like any.
    meta = torch.device("meta")
    table = kind is EmbeddingDora
    module = nn.Embedding(8, 6, device=meta) if table else nn.Linear(8, 6, device=meta)
    effect = kind(torch.ones(2, 8), torch.ones(6, 2), torch.ones(6), 1.0)
    delta = effect.bind(EffectTarget(module, lambda: plain_weight(module), torch.float32, meta))
    x_M = torch.zeros(3, dtype=torch.int64) if table else torch.zeros(3, 8)
    y_MO = torch.zeros(3, 6, device=meta)
    assert delta(x_M.to(meta), y_MO, torch.ones(1, 1, device=meta)).device == meta
