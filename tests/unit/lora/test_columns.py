"""The columns of stacked experts: read in the order that a config says, and where it does not
say and there is a doubt, in PEFT's and with a warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorry_adapters.lora import spot_check
from lorry_adapters.lora.expert_effects import ExpertLora
from lorry_adapters.lora.problems import UNKNOWN_COLUMN_ORDER
from lorry_adapters.lora.weights import AdapterWeights, inspect, load
from support import former_experts, tiny
from support.expert_orders import UNSLOTH, detail, exchange, regroup
from support.peft_adapters import edit_config
from support.spoilt import told

BOTH = "target_parameters, router"
GROUPED, BY_RANK = "grouped_by_expert", "rank_major"


def deltas(weights: AdapterWeights) -> dict[str, torch.Tensor]:
    found = {}
    for path, effects in weights.effects.items():
        for effect in effects:
            if isinstance(effect, ExpertLora):
                for name, (pairs,) in effect.pairs.items():
                    found[f"{path}.{name}"] = pairs.b_EOR.float() @ pairs.a_ERI.float()
    return found


def same(one: AdapterWeights, other: AdapterWeights) -> bool:
    mine, theirs = deltas(one), deltas(other)
    assert mine.keys() == theirs.keys() and mine
    return all(torch.equal(mine[path], theirs[path]) for path in mine)


@pytest.mark.parametrize(
    "said",
    [
        {"lora_B_layout": GROUPED},
        {"auto_mapping": {**UNSLOTH, "lora_B_layout": GROUPED}},
        {"unsloth_fused_expert_lora": detail(gate_up_proj=GROUPED, down_proj=GROUPED)},
        {
            "lora_B_layout": BY_RANK,
            "unsloth_fused_expert_lora": detail(gate_up_proj=GROUPED, down_proj=GROUPED),
        },
        {
            "auto_mapping": {
                **UNSLOTH,
                "unsloth_fused_expert_lora": detail(gate_up_proj=GROUPED, down_proj=GROUPED),
            }
        },
    ],
    ids=["all", "in auto_mapping", "each", "each is closer", "each, in auto_mapping"],
)
def test_the_order_that_the_config_says_is_read(
    said: dict[str, Any], expert_adapter: Callable[..., Path], layout: Any
) -> None:
    mixtral = layout("mixtral")
    plain = load(expert_adapter("mixtral", BOTH), "d", mixtral)
    folder = regroup(expert_adapter("mixtral", BOTH))
    assert not same(load(folder, "d", mixtral), plain)
    folder = regroup(expert_adapter("mixtral", BOTH), **said)
    assert inspect(folder, mixtral, 64).warnings == ()
    loaded = load(folder, "d", mixtral)
    assert same(loaded, plain)
    spot_check.check(folder, loaded)


def test_one_parameter_in_one_order_and_one_in_the_other(
    expert_adapter: Callable[..., Path], layout: Any
) -> None:
    mixtral = layout("mixtral")
    orders = detail(gate_up_proj=GROUPED, down_proj=BY_RANK)
    folder = regroup(
        expert_adapter("mixtral", BOTH), only="base_layer", unsloth_fused_expert_lora=orders
    )
    loaded = load(folder, "d", mixtral)
    assert same(loaded, load(expert_adapter("mixtral", BOTH), "d", mixtral))
    spot_check.check(folder, loaded)


def test_matrices_that_are_exchanged_as_well(
    expert_adapter: Callable[..., Path], layout: Any
) -> None:
    """Of a PEFT before 0.19.1: lora_B, whose columns these are, has the inputs."""
    qwen = layout("qwen3_moe")
    folder = exchange(expert_adapter("qwen3_moe", BOTH))
    plain = load(folder, "d", qwen)
    regrouped = regroup(folder, lora_B_layout=GROUPED)
    assert same(load(regrouped, "d", qwen), plain)


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({}, False),
        ({"auto_mapping": UNSLOTH}, True),
        ({"auto_mapping": {**UNSLOTH, "lora_B_layout": BY_RANK}}, False),
        ({"auto_mapping": UNSLOTH, "lora_B_layout": BY_RANK}, False),
        ({"peft_version": None, "auto_mapping": None}, True),
        ({"peft_version": None, "lora_B_layout": BY_RANK}, False),
    ],
)
def test_a_doubt_is_said(
    config: dict[str, Any], warned: bool, expert_adapter: Callable[..., Path], layout: Any
) -> None:
    folder = expert_adapter("mixtral", BOTH, **config)
    found = inspect(folder, layout("mixtral"), 64).warnings
    assert len(found) == warned
    if warned:
        assert found[0].endswith(UNKNOWN_COLUMN_ORDER)
        assert ("unsloth_fixed" in found[0]) == (config["auto_mapping"] is not None)


@pytest.mark.parametrize("kind", ["linears of each expert", "no experts"])
def test_where_there_is_no_such_order_there_is_no_doubt(
    kind: str, layout: Any, adapter: Path, tmp_path: Path
) -> None:
    family, folder = "mixtral", tmp_path / "made"
    if kind == "linears of each expert":
        former_experts.make("mixtral", tiny.build_model("mixtral"), folder)
    else:
        family, folder = "llama", adapter
    edit_config(folder, auto_mapping=UNSLOTH)
    assert inspect(folder, layout(family), 64).warnings == ()


@pytest.mark.parametrize(
    "said",
    [
        {"lora_B_layout": "rank-major"},
        {"lora_B_layout": ["rank_major"]},
        {"unsloth_fused_expert_lora": detail(gate_up_proj=GROUPED, down_proj="mixed")},
        {"unsloth_fused_expert_lora": {"parameters": {"down_proj": 7}}},
        {"auto_mapping": {"lora_B_layout": "mixed"}},
    ],
)
def test_an_order_that_is_none_is_refused(
    said: dict[str, Any], expert_adapter: Callable[..., Path], layout: Any
) -> None:
    problems = told(expert_adapter("mixtral", BOTH, **said), layout("mixtral"))
    assert "must be rank_major or grouped_by_expert" in problems
