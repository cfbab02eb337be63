"""How much a run takes is measured, and said before it is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorry.errors import TrainingError
from lorry.model.base_source import BaseSource
from lorry.training.adapter_model import loaded, with_adapter
from lorry.training.step_memory import _kept, check, need
from lorry.training.training_recipe import TrainingRecipe


def model(source: BaseSource, recipe: TrainingRecipe) -> Any:
    torch.manual_seed(0)
    return with_adapter(loaded(source.folder, recipe), recipe)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("length", [200, 500])
def test_a_long_sequence_keeps_what_two_short_ones_foretell(
    source: BaseSource, quantize: str, length: int
) -> None:
    recipe = TrainingRecipe(batch=1, quantize=quantize)
    made = model(source, recipe)
    foretold = need(made, recipe, length).activations
    kept = _kept(made, length)
    assert kept <= foretold <= 1.5 * kept


def test_parts_recomputation_and_rank_change_it(source: BaseSource) -> None:
    plain = TrainingRecipe(batch=8)
    whole = need(model(source, plain), plain, 100)
    in_parts = TrainingRecipe(batch=8, accumulation=4)
    assert need(model(source, in_parts), in_parts, 100).activations == pytest.approx(
        whole.activations / 4, rel=0.01
    )
    again = TrainingRecipe(batch=8, checkpointing=True)
    assert need(model(source, again), again, 100).activations < 0.7 * whole.activations
    larger = TrainingRecipe(batch=8, rank=32)
    assert need(model(source, larger), larger, 100).state == 2 * whole.state


def test_measuring_changes_nothing(source: BaseSource) -> None:
    recipe = TrainingRecipe(dropout=0.5)
    made = model(source, recipe)
    before = torch.get_rng_state()
    need(made, recipe, 100)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(one.grad is None for one in made.parameters())


def test_a_run_that_does_not_fit_is_refused_with_what_helps(
    source: BaseSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainingRecipe(batch=8)
    found = need(model(source, recipe), recipe, 100)
    monkeypatch.setattr("lorry_adapters.lora.memory_limit.free", lambda: found.bytes - 1)
    with pytest.raises(TrainingError, match=r"--accumulation 2, --checkpointing, a smaller"):
        check(found, recipe)
    monkeypatch.setattr("lorry_adapters.lora.memory_limit.free", lambda: found.bytes)
    check(found, recipe)
