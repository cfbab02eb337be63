"""A pair cut in parts does to each part of the output what the whole did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorry_adapters.lora.aliases import as_named, foreign, split
from lorry_adapters.lora.base import AliasPart, BaseLayout
from lorry_adapters.lora.parts import LoraPair

PARTS = (AliasPart("q", 0, 4), AliasPart("k", 4, 6), AliasPart("v", 6, 12))


def test_the_parts_side_by_side_are_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    a_RI, b_OR = torch.randn(3, 5, generator=generator), torch.randn(12, 3, generator=generator)
    parts = split(LoraPair(a_RI, b_OR, 0.5), PARTS)
    assert list(parts) == ["q", "k", "v"]
    x_I = torch.randn(5, generator=generator)
    together = torch.cat([part.b_OR @ (part.a_RI @ x_I) for part in parts.values()])
    torch.testing.assert_close(together, b_OR @ (a_RI @ x_I))
    assert {part.scaling for part in parts.values()} == {0.5}


def test_nothing_is_copied() -> None:
    pair = LoraPair(torch.ones(3, 5), torch.ones(12, 3), 1.0)
    parts = split(pair, PARTS)
    assert all(part.a_RI is pair.a_RI for part in parts.values())
    assert parts["k"].b_OR.data_ptr() == pair.b_OR[4:].data_ptr()


def test_parts_that_are_not_the_whole_are_our_mistake() -> None:
    with pytest.raises(AssertionError):
        split(LoraPair(torch.ones(3, 5), torch.ones(11, 3), 1.0), PARTS)


def test_a_name_that_transformers_has_changed(layout: Callable[[str], BaseLayout]) -> None:
    neox = layout("gpt_neox")
    known = foreign(as_named(neox, ["base_model.model.embed_out.lora_A.weight"]))
    assert known.output_embedding == "embed_out" and "lm_head" not in known.modules
    new = ["base_model.model.lm_head.lora_A.weight", "my_embed_out.weight"]
    assert as_named(neox, new) is neox
    assert as_named(layout("llama"), ["embed_out.weight"]) is layout("llama")
