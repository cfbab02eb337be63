"""LoRA on experts: which keys are whose, and what is refused. What it does to a step's rows is
`test_expert_rows.py`, and what the numbers are `tests/oracle/test_experts.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import spot_check
from lorry_adapters.lora.base import ModuleKind
from lorry_adapters.lora.expert_effects import ExpertLora, RouterPair
from lorry_adapters.lora.weights import AdapterWeights, inspect, load
from lorry_adapters.registry.startup_check import fingerprint
from support import former_experts, tiny
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS
from support.spoilt import told

OWNER = "model.layers.0.mlp.experts"


@pytest.fixture
def former(tmp_path: Path) -> Callable[..., Path]:
    def make(family: str, **config: Any) -> Path:
        folder = tmp_path / f"former-{len(list(tmp_path.iterdir()))}"
        return former_experts.make(family, tiny.build_model(family), folder, **config).folder

    return make


def experts_of(weights: AdapterWeights, owner: str = OWNER) -> ExpertLora:
    (effect,) = weights.effects[owner]
    assert isinstance(effect, ExpertLora)
    return effect


def test_a_rank_is_one_expert_s(expert_adapter: Callable[..., Path], layout: Any) -> None:
    facts = inspect(
        expert_adapter("mixtral", "target_parameters, router"), layout("mixtral"), max_rank=4
    )
    assert facts.rank == 4
    assert facts.target_modules == ("down_proj", "gate", "gate_up_proj", "q_proj")


@pytest.mark.parametrize("leaf", ["gate_up_proj", "down_proj"])
def test_one_parameter_of_two_has_no_wrapper_in_its_path(
    leaf: str, expert_adapter: Callable[..., Path], layout: Any
) -> None:
    """`mlp.experts.lora_A` is whichever is named alone."""
    folder = expert_adapter("mixtral", "target_parameters, one of two")
    if leaf == "gate_up_proj":
        # The keys of the one, the shapes of the other.
        edit_config(folder, target_parameters=["mlp.experts.gate_up_proj"])
        assert "this base needs [4 times the rank, 64]" in told(folder, layout("mixtral"))
    else:
        assert {*experts_of(load(folder, "d", layout("mixtral"))).pairs} == {leaf}


def test_the_innermost_wrapper_is_the_first_parameter_s(
    expert_adapter: Callable[..., Path], layout: Any
) -> None:
    weights = load(expert_adapter("mixtral", "target_parameters, router"), "d", layout("mixtral"))
    pairs = experts_of(weights).pairs
    assert pairs["gate_up_proj"][0].b_EOR.shape == (4, 256, 4)
    assert pairs["down_proj"][0].b_EOR.shape == (4, 64, 4)
    (router,) = weights.effects["model.layers.0.mlp.gate"]
    assert isinstance(router, RouterPair) and router.b_OR.shape == (4, 4)


def test_patterns_count_as_they_did_in_training(former: Callable[..., Path], layout: Any) -> None:
    """By the names that the linears had, which PEFT's conversion forgets."""
    folder = former("mixtral", use_rslora=True, alpha_pattern={"w2": 64, r"experts\.1\.w1": 2})
    pairs = experts_of(load(folder, "d", layout("mixtral"))).pairs
    assert pairs["down_proj"][0].scaling_E.tolist() == [32.0] * 4
    gate, up = sorted(pairs["gate_up_proj"], key=lambda one: one.start)
    assert gate.scaling_E.tolist() == [4.0, 1.0, 4.0, 4.0]
    assert (up.start, up.scaling_E.tolist()) == (128, [4.0] * 4)


def test_a_headless_adapter_is_found(expert_adapter: Callable[..., Path], layout: Any) -> None:
    folder = expert_adapter("mixtral", "target_parameters", task_type="FEATURE_EXTRACTION")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    short = {
        k.replace("base_model.model.model.", "base_model.model."): v for k, v in tensors.items()
    }
    save_file(short, file, metadata={"format": "pt"})
    weights = load(folder, "d", layout("mixtral"))
    spot_check.check(folder, weights)
    assert {*experts_of(weights).pairs} == {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_parameters": ["experts.nowhere"]}, "matches no parameter of the base"),
        (
            {"target_parameters": ["mlp.experts.down_proj", "q_proj.weight"]},
            "target_parameters selects parameters that cannot carry a pair of matrices",
        ),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "experts.base_layer"),
        ({"use_dora": True}, "use_dora on experts and routers is not served"),
        ({"lora_bias": True}, "lora_bias on experts and routers is not served"),
        ({"alora_invocation_tokens": [5]}, "activated LoRA"),
        ({"r": 3}, "has rank 4 in the file and 3 in the config"),
        ({"target_parameters": None}, "the file has"),
    ],
)
def test_what_is_refused(
    config: dict[str, Any], said: str, expert_adapter: Callable[..., Path], layout: Any
) -> None:
    assert said in told(expert_adapter("mixtral", "target_parameters", **config), layout("mixtral"))


def test_every_problem_is_told(expert_adapter: Callable[..., Path], layout: Any) -> None:
    folder = expert_adapter("qwen3_moe", "target_parameters", peft_version=None, r=3)
    said = told(folder, layout("qwen3_moe"), max_rank=2)
    assert "peft_version is missing" in said
    assert "has rank 4 in the file and 3 in the config" in said
    assert "over this server's limit of 2" in said


def test_rows_that_no_number_of_experts_divides(
    expert_adapter: Callable[..., Path], layout: Any
) -> None:
    folder = expert_adapter("mixtral", "target_parameters")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, file)
    assert "this base needs [4 times the rank, 128]" in told(folder, layout("mixtral"))


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_bias": True}])
def test_linears_of_old_with_more_than_a_pair(
    config: dict[str, Any], former: Callable[..., Path], layout: Any
) -> None:
    said = told(former("qwen2_moe", **config), layout("qwen2_moe"))
    assert f"{next(iter(config))} on experts and routers is not served" in said


def test_a_base_without_experts_says_so(expert_adapter: Callable[..., Path], layout: Any) -> None:
    said = told(expert_adapter("mixtral", "target_parameters"), layout("llama"))
    assert "matches no parameter of the base tiny-llama, which has no experts" in said


def test_the_plain_base_knows_nothing_of_it(layout: Any) -> None:
    assert layout("llama").parameters == {}
    kinds = [one.shape.kind for one in layout("qwen2_moe").parameters.values()]
    assert kinds == [ModuleKind.EXPERTS, ModuleKind.EXPERTS, ModuleKind.ROUTER] * 2


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_the_self_check_passes_what_is_right(
    family: str, expert_adapter: Callable[..., Path], former: Callable[..., Path], layout: Any
) -> None:
    kinds = [kind for kind in KINDS if kind.startswith("target_parameters")]
    for folder in (*(expert_adapter(family, kind) for kind in kinds), former(family)):
        spot_check.check(folder, load(folder, "d", layout(family)))


def turned(effect: ExpertLora) -> ExpertLora:
    """The experts' pairs go round by one."""
    pairs = {
        name: tuple(
            replace(one, a_ERI=one.a_ERI.roll(1, 0), b_EOR=one.b_EOR.roll(1, 0)) for one in mine
        )
        for name, mine in effect.pairs.items()
    }
    return replace(effect, pairs=pairs)


def louder(effect: ExpertLora) -> ExpertLora:
    pairs = {
        name: tuple(replace(one, scaling_E=one.scaling_E * 1.01) for one in mine)
        for name, mine in effect.pairs.items()
    }
    return replace(effect, pairs=pairs)


@pytest.mark.parametrize("spoil", [turned, louder])
@pytest.mark.parametrize("spelling", ["now", "formerly"])
def test_the_self_check_finds_what_is_wrong(
    spelling: str,
    spoil: Callable[[ExpertLora], ExpertLora],
    expert_adapter: Callable[..., Path],
    former: Callable[..., Path],
    layout: Any,
) -> None:
    folder = (
        expert_adapter("mixtral", "target_parameters") if spelling == "now" else former("mixtral")
    )
    weights = load(folder, "d", layout("mixtral"))
    effects = {
        path: tuple(spoil(one) if isinstance(one, ExpertLora) else one for one in mine)
        for path, mine in weights.effects.items()
    }
    with pytest.raises(InvalidAdapter, match=r"self-check failed.*experts"):
        spot_check.check(folder, replace(weights, effects=effects))


def test_no_weight_is_copied(expert_adapter: Callable[..., Path], layout: Any) -> None:
    """What an adapter holds is its pairs."""
    weights = load(
        expert_adapter("mixtral", "target_parameters, one of two"), "d", layout("mixtral")
    )
    pairs = 2 * 4 * 4 * (128 + 64) * 4
    assert weights.bytes == pairs


def test_the_config_s_version_is_read(expert_adapter: Callable[..., Path]) -> None:
    config = json.loads(
        (expert_adapter("mixtral", "target_parameters") / "adapter_config.json").read_text()
    )
    assert config["peft_version"], "or every adapter with equal sides would be refused"


def test_bases_that_differ_in_their_experts_alone_are_told_apart(layout: Any) -> None:
    """Or an adapter that was verified on one would be taken for one that fits the other."""
    base = layout("qwen3_moe")
    path = "model.layers.0.mlp.experts.down_proj"
    one = base.parameters[path]
    wider = replace(one, shape=replace(one.shape, in_features=48))
    other = replace(base, parameters={**base.parameters, path: wider})
    assert fingerprint(other) != fingerprint(base)
