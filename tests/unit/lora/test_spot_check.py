"""The self-check on load finds what it is for: pairs that went to the wrong module, or strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import spot_check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import AdapterWeights, load
from support.peft_adapters import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_right_passes(
    variant: str, peft_adapter: Callable[..., Path], layout: Callable[[str], BaseLayout]
) -> None:
    folder = peft_adapter("llama", variant)
    spot_check.check(folder, load(folder, "d", layout("llama")))


@pytest.fixture
def folder(peft_adapter: Callable[..., Path]) -> Path:
    return peft_adapter("llama", "plain")


@pytest.fixture
def weights(folder: Path, layout: Callable[[str], BaseLayout]) -> AdapterWeights:
    return load(folder, "d", layout("llama"))


def test_modules_that_were_exchanged(folder: Path, weights: AdapterWeights) -> None:
    names = sorted(weights.modules)
    turned = dict(
        zip(names, [weights.modules[name] for name in names[1:] + names[:1]], strict=True)
    )
    with pytest.raises(InvalidAdapter, match="self-check failed"):
        spot_check.check(folder, replace(weights, modules=turned))


def test_a_strength_that_is_not_the_config_s(folder: Path, weights: AdapterWeights) -> None:
    louder = {name: replace(p, scaling=p.scaling * 1.01) for name, p in weights.modules.items()}
    with pytest.raises(InvalidAdapter, match="self-check failed"):
        spot_check.check(folder, replace(weights, modules=louder))


def test_one_that_overflows_is_named_as_that(folder: Path, weights: AdapterWeights) -> None:
    """It was stored before uploads were measured."""
    louder = {name: replace(p, scaling=p.scaling * 1e30) for name, p in weights.modules.items()}
    with pytest.raises(InvalidAdapter) as caught:
        spot_check.check(folder, replace(weights, modules=louder))
    assert "too strong" in caught.value.problems[0]
