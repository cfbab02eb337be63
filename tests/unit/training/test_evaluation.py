"""An adapter beside its base: the figures against the definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lorry.model.base_source import BaseSource
from lorry.training.adapter_model import loaded, with_adapter
from lorry.training.evaluation import evaluate
from lorry.training.rendering import LearnedTokens
from lorry.training.training_recipe import TrainingMethod, TrainingRecipe

SEQUENCES = [
    LearnedTokens("a:1", (5, 40, 77, 9, 200), (False, False, True, True, True)),
    LearnedTokens("a:2", (31, 8, 90), (False, True, True)),
]


def model(source: BaseSource, recipe: TrainingRecipe, *, strength: float) -> Any:
    torch.manual_seed(0)
    made = with_adapter(loaded(source.folder, recipe), recipe).float()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=strength)
    return made


def distribution(made: Any, ids: tuple[int, ...]) -> list[list[float]]:
    with torch.no_grad():
        return made(torch.tensor([ids])).logits[0].double().softmax(-1).tolist()


def test_an_untrained_adapter_is_its_base(source: BaseSource, tokenizer) -> None:
    found = evaluate(model(source, TrainingRecipe(), strength=0.0), tokenizer, SEQUENCES)
    assert found.loss == pytest.approx(found.base_loss, abs=1e-5)
    assert found.drift == pytest.approx(0, abs=1e-6)
    assert all(one.base == one.adapter for one in found.answers)


def test_the_figures_are_what_they_are_called(source: BaseSource, tokenizer) -> None:
    made = model(source, TrainingRecipe(), strength=0.05)
    found = evaluate(made, tokenizer, SEQUENCES)
    losses, bases, drifts, ends = [], [], [], []
    for one in SEQUENCES:
        own = distribution(made, one.ids)
        with made.disable_adapter():
            base = distribution(made, one.ids)
        for place in (place for place, learned in enumerate(one.learned) if learned):
            p, q = own[place - 1], base[place - 1]
            losses.append(-math.log(p[one.ids[place]]))
            bases.append(-math.log(q[one.ids[place]]))
            drifts.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        ends.append(max(range(len(p)), key=p.__getitem__) == one.ids[-1])
    assert found.loss == pytest.approx(sum(losses) / 5, abs=1e-4)
    assert found.base_loss == pytest.approx(sum(bases) / 5, abs=1e-4)
    assert found.drift == pytest.approx(sum(drifts) / 5, abs=1e-4)
    assert found.drift > 0.01
    assert found.ends == sum(ends) / 2


def test_virtual_tokens_are_no_positions_of_the_example(source: BaseSource, tokenizer) -> None:
    recipe = TrainingRecipe(method=TrainingMethod.PROMPT)
    made = with_adapter(loaded(source.folder, recipe), recipe).float()
    found = evaluate(made, tokenizer, SEQUENCES)
    with made.disable_adapter():
        base = [distribution(made, one.ids) for one in SEQUENCES]
    expected = [
        -math.log(base[row][place - 1][one.ids[place]])
        for row, one in enumerate(SEQUENCES)
        for place, learned in enumerate(one.learned)
        if learned
    ]
    assert found.base_loss == pytest.approx(sum(expected) / 5, abs=1e-4)
    assert found.drift > 0.01
