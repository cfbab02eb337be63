"""Which parameters of a mixture of experts the layout offers; that they are offered with no
weights read, too; and a router that cannot be given other scores is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from lorry.model.expert_layouts import parameters_of
from lorry_adapters.lora.base import BaseParameter, ModuleKind
from support import tiny

FORMER = {
    "mixtral": "model.layers.1.block_sparse_moe.experts.{}.w2",
    "qwen2_moe": "model.layers.1.mlp.experts.{}.down_proj",
    "qwen3_moe": "model.layers.1.mlp.experts.{}.down_proj",
}


def routers(found: dict[str, BaseParameter]) -> list[str]:
    return [path for path, one in found.items() if one.shape.kind is ModuleKind.ROUTER]


@pytest.mark.parametrize("family", FORMER)
def test_parameters_and_what_they_were(family: str) -> None:
    found = parameters_of(tiny.build_model(family))
    down = found["model.layers.1.mlp.experts.down_proj"]
    assert down.owner == "model.layers.1.mlp.experts"
    assert (down.shape.experts, down.shape.out_features) == (4, 64)
    assert down.formerly == (FORMER[family],)
    assert routers(found) == [f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 1)]


def test_of_a_model_without_weights() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.family("qwen2_moe").config())
    assert parameters_of(model) == parameters_of(tiny.build_model("qwen2_moe"))
    assert parameters_of(tiny.build_model("llama")) == {}


class Norming(MixtralTopKRouter):
    """Does more to its input than multiply it with its weight."""

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return super().forward(F.normalize(hidden_states, dim=-1))


def test_a_router_that_is_more_than_its_scores_is_not_offered() -> None:
    model: Any = tiny.build_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = Norming
    assert routers(parameters_of(model)) == []
