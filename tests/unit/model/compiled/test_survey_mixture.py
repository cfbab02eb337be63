"""A mixture of experts is described by what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry.model.compiled.description import LayerDescription, MixtureDescription
from support.described_families import MIXTURES
from support.executor_driver import load_tiny
from unit.model.compiled.test_survey import Load, described, doing, refused


@pytest.fixture
def load(tiny_model: Callable[[str], Path]) -> Load:
    """A model of its own: the tests below change it."""
    return lambda family: load_tiny(tiny_model(family), quantization="int8")


def mixture(layer: LayerDescription) -> MixtureDescription:
    assert layer.mixture is not None
    return layer.mixture


@pytest.mark.parametrize("family", MIXTURES)
def test_every_linear_and_all_experts_are_described(family: str, load: Load) -> None:
    loaded = load(family)
    found = described(loaded)
    linears = {p for layer in found.layers for phase in layer.phases for p in phase}
    mixtures = [layer.mixture for layer in found.layers if layer.mixture is not None]
    linears |= {one.shared_gate for one in mixtures if one.shared_gate is not None}
    assert linears | {found.head} == {
        path for path, module in loaded.layout.modules.items() if module.kind == "linear"
    }
    assert {one.owner for one in loaded.layout.parameters.values()} == {
        path for one in mixtures for path in (one.experts, one.router)
    }


def test_what_a_family_is_known_for(load: Load) -> None:
    mixtral = described(load("mixtral"))
    first = mixture(mixtral.layers[0])
    assert (first.count, first.chosen, first.inner) == (4, 2, 128)
    assert first.normed and first.factor == 1.0 and first.shared_gate is None
    assert mixtral.inner == 0 and mixtral.layers[0].down is None and mixtral.gated
    assert not mixture(described(load("olmoe")).layers[1]).normed
    assert mixture(described(load("granitemoe")).layers[1]).normed
    qwen2 = described(load("qwen2_moe"))
    assert mixture(qwen2.layers[0]).shared_gate == "model.layers.0.mlp.shared_expert_gate"
    assert (mixture(qwen2.layers[0]).inner, qwen2.inner) == (32, 64)
    dense, sparse = described(load("qwen3_moe_dense")).layers
    assert dense.mixture is None and dense.down is not None
    assert mixture(sparse).inner == 64 and sparse.down is None


# ---- modules that do not do what they are called


def block(loaded: Any, layer: int = 1) -> Any:
    return loaded.model.model.layers[layer].mlp


def test_a_router_that_chooses_otherwise(load: Load) -> None:
    loaded = load("mixtral")
    doing(block(loaded).gate, lambda y: (y[0], y[1], (y[2] + 1) % 4))
    assert refused(loaded) == "its experts are chosen in an unknown way"


def test_parts_that_are_multiplied(load: Load) -> None:
    loaded = load("mixtral")
    doing(block(loaded).gate, lambda y: (y[0], 2.5 * y[1], y[2]))
    assert mixture(described(loaded).layers[1]).factor == pytest.approx(2.5, rel=1e-5)


def test_experts_in_another_order_are_the_same(load: Load) -> None:
    loaded = load("qwen3_moe")
    before = described(loaded)
    doing(block(loaded).gate, lambda y: (y[0], y[1].flip(1), y[2].flip(1)))
    assert described(loaded) == before


def test_experts_that_do_more(load: Load) -> None:
    loaded = load("mixtral")
    doing(block(loaded).experts, lambda y: y + 0.1)
    assert refused(loaded) == "its experts do more than two projections and a gate"


def test_another_activation(load: Load) -> None:
    loaded = load("mixtral")
    for layer in (0, 1):
        block(loaded, layer).experts.act_fn = torch.nn.GELU()
    assert described(loaded).activation == "gelu"
    block(loaded).experts.act_fn = torch.nn.Mish()
    assert refused(loaded) == "its experts have an activation that is not known"
    qwen2 = load("qwen2_moe")
    block(qwen2).shared_expert.act_fn = torch.nn.GELU()
    assert refused(qwen2) == "its experts have another activation than the MLP beside them"


def test_a_shared_expert_that_counts_otherwise(load: Load) -> None:
    loaded = load("qwen2_moe")
    doing(block(loaded).shared_expert_gate, lambda y: y)
    before = described(loaded)
    doing(block(loaded).shared_expert, lambda y: 2 * y)
    assert refused(loaded) == "its norms and residuals are in an unknown order"
    assert mixture(before.layers[1]).shared_gate is not None
