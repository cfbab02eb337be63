"""A mixture of experts is described by what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry.model.compiled.description import (
    LayerDescription,
    MixtureDescription,
    RouterDescription,
)
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
    routers = {one.router.module for one in mixtures}
    known = {path for path, module in loaded.layout.modules.items() if module.kind == "linear"}
    assert linears | {found.head} == known - routers
    owners = {one.owner for one in loaded.layout.parameters.values()}
    assert owners - routers == {one.experts for one in mixtures}


def test_what_a_family_is_known_for(load: Load) -> None:
    mixtral = described(load("mixtral"))
    first = mixture(mixtral.layers[0])
    assert (first.count, first.chosen, first.inner) == (4, 2, 128)
    assert first.router == RouterDescription("model.layers.0.mlp.gate", normed=True)
    assert first.shared_gate is None
    assert mixtral.inner == 0 and mixtral.layers[0].down is None and mixtral.gated
    assert not mixture(described(load("olmoe")).layers[1]).router.normed
    assert mixture(described(load("granitemoe")).layers[1]).router.normed
    qwen2 = described(load("qwen2_moe"))
    assert mixture(qwen2.layers[0]).shared_gate == "model.layers.0.mlp.shared_expert_gate"
    assert (mixture(qwen2.layers[0]).inner, qwen2.inner) == (32, 64)
    dense, sparse = described(load("qwen3_moe_dense")).layers
    assert dense.mixture is None and dense.down is not None
    assert mixture(sparse).inner == 64 and sparse.down is None


def test_gpt_oss(load: Load) -> None:
    loaded = load("gpt_oss")
    found = described(loaded)
    for index, layer in enumerate(found.layers):
        one, gate = mixture(layer), block(loaded, index).router
        path = f"model.layers.{index}.mlp.router"
        assert one.router == RouterDescription(path, normed=True, bias=f"{path}.bias")
        assert gate.bias.any()
        assert one.interleaved and one.clamp == (1.702, 1.5)
        sinks = loaded.model.model.layers[index].self_attn.sinks
        assert layer.sinks == tuple(sinks.tolist())


def test_corrected_choices(load: Load) -> None:
    dense, sparse = described(load("glm4_moe")).layers
    path = "model.layers.1.mlp.gate"
    assert mixture(sparse).router == RouterDescription(
        path,
        scoring="sigmoid",
        normed=True,
        factor=2.5,
        correction=f"{path}.e_score_correction_bias",
        groups=(4, 2),
    )
    assert (dense.inner_size, sparse.inner_size, mixture(sparse).inner) == (128, 64, 64)
    path = "model.layers.1.mlp.gate"
    assert mixture(described(load("ernie4_5_moe")).layers[1]).router == RouterDescription(
        path, normed=True, correction=f"{path}.moe_statics.e_score_correction_bias"
    )


def test_a_correction_that_changes_few_choices(load: Load) -> None:
    """It is seen where the router is asked about more tokens than those of the first look."""
    loaded = load("ernie4_5_moe")
    for layer in (0, 1):
        block(loaded, layer).gate.moe_statics.e_score_correction_bias.data *= 0.1
    assert mixture(described(loaded).layers[1]).router.correction is not None
    for layer in (0, 1):
        block(loaded, layer).gate.moe_statics.e_score_correction_bias.data.zero_()
    assert mixture(described(loaded).layers[1]).router.correction is None


def test_experts_one_after_the_other(load: Load) -> None:
    assert mixture(described(load("phimoe")).layers[1]).router == RouterDescription(
        "model.layers.1.mlp.router", scoring="sparse", tolerance=0.4
    )


def test_a_limit_that_no_token_of_the_first_look_reaches(load: Load) -> None:
    loaded = load("gpt_oss")
    for layer in (0, 1):
        block(loaded, layer).experts.limit = 9.0
    assert mixture(described(loaded).layers[1]).clamp == (1.702, 9.0)


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
    assert mixture(described(loaded).layers[1]).router.factor == pytest.approx(2.5, rel=1e-5)


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
