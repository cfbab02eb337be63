"""LoRA on experts: which keys are whose, what is refused, and that only the rows with an adapter
take another way. What the numbers are is `tests/oracle/test_experts.py`."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorry.model.layout import layout_of
from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora import probe
from lorry_adapters.lora.base import BaseLayout, ModuleKind
from lorry_adapters.lora.experts import ExpertLora, RouterPair
from lorry_adapters.lora.layers import LoraModel
from lorry_adapters.lora.plan import Uses, build_plan
from lorry_adapters.lora.weights import AdapterWeights, inspect, load
from lorry_adapters.registry.survey import fingerprint
from support import former_experts, peft_made, tiny
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS

CPU = torch.device("cpu")
OWNER = "model.layers.0.mlp.experts"


@cache
def base_of(family: str) -> Any:
    return tiny.build_model(family)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made("mixtral", "target_parameters, router")`: a folder; `**config` edits it."""
    root = tmp_path_factory.mktemp("experts")
    count = iter(range(1000))

    @cache
    def original(family: str, kind: str, seed: int) -> Path:
        folder = root / f"{family}-{kind}-{seed}"
        return peft_made.make(KINDS[kind], family, base_of(family), folder, seed=seed).folder

    def make(family: str, kind: str, *, seed: int = 1, **config: Any) -> Path:
        folder = Path(shutil.copytree(original(family, kind, seed), root / f"copy{next(count)}"))
        edit_config(folder, **config)
        return folder

    return make


@pytest.fixture
def former(tmp_path: Path) -> Callable[..., Path]:
    def make(family: str, **config: Any) -> Path:
        folder = tmp_path / f"former-{len(list(tmp_path.iterdir()))}"
        return former_experts.make(family, base_of(family), folder, **config).folder

    return make


def experts_of(weights: AdapterWeights, owner: str = OWNER) -> ExpertLora:
    (effect,) = weights.effects[owner]
    assert isinstance(effect, ExpertLora)
    return effect


def problems(folder: Path, layout: BaseLayout, max_rank: int = 64) -> str:
    with pytest.raises(InvalidAdapter) as refused:
        inspect(folder, layout, max_rank)
    return " | ".join(refused.value.problems)


def test_a_rank_is_one_expert_s(made: Callable[..., Path], layout: Any) -> None:
    facts = inspect(made("mixtral", "target_parameters, router"), layout("mixtral"), max_rank=4)
    assert facts.rank == 4
    assert facts.target_modules == ("down_proj", "gate", "gate_up_proj", "q_proj")


@pytest.mark.parametrize("leaf", ["gate_up_proj", "down_proj"])
def test_one_parameter_of_two_has_no_wrapper_in_its_path(
    leaf: str, made: Callable[..., Path], layout: Any
) -> None:
    """`mlp.experts.lora_A` is whichever is named alone."""
    folder = made("mixtral", "target_parameters, one of two")
    if leaf == "gate_up_proj":
        # The keys of the one, the shapes of the other.
        edit_config(folder, target_parameters=["mlp.experts.gate_up_proj"])
        assert "this base needs [4 times the rank, 64]" in problems(folder, layout("mixtral"))
    else:
        assert {*experts_of(load(folder, "d", layout("mixtral"))).pairs} == {leaf}


def test_the_innermost_wrapper_is_the_first_parameter_s(
    made: Callable[..., Path], layout: Any
) -> None:
    weights = load(made("mixtral", "target_parameters, router"), "d", layout("mixtral"))
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


def test_a_headless_adapter_is_found(made: Callable[..., Path], layout: Any) -> None:
    folder = made("mixtral", "target_parameters", task_type="FEATURE_EXTRACTION")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    short = {
        k.replace("base_model.model.model.", "base_model.model."): v for k, v in tensors.items()
    }
    save_file(short, file, metadata={"format": "pt"})
    weights = load(folder, "d", layout("mixtral"))
    probe.check(folder, weights)
    assert {*experts_of(weights).pairs} == {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_parameters": ["experts.nowhere"]}, "matches no parameter of the base"),
        (
            {"target_parameters": ["mlp.experts.down_proj", "q_proj.weight"]},
            "target_parameters selects what cannot carry a pair of matrices",
        ),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "experts.base_layer"),
        ({"use_dora": True}, "use_dora on experts and routers is not served"),
        ({"lora_bias": True}, "lora_bias on experts and routers is not served"),
        ({"alora_invocation_tokens": [5]}, "activated LoRA"),
        ({"r": 3}, "has rank 4 in the file and 3 by the config"),
        ({"target_parameters": None}, "the file has"),
    ],
)
def test_what_is_refused(
    config: dict[str, Any], said: str, made: Callable[..., Path], layout: Any
) -> None:
    assert said in problems(made("mixtral", "target_parameters", **config), layout("mixtral"))


def test_every_problem_is_told(made: Callable[..., Path], layout: Any) -> None:
    folder = made("qwen3_moe", "target_parameters", peft_version=None, r=3)
    said = problems(folder, layout("qwen3_moe"), max_rank=2)
    assert "peft_version is missing" in said
    assert "has rank 4 in the file and 3 by the config" in said
    assert "over this server's limit of 2" in said


def test_rows_that_no_number_of_experts_divides(made: Callable[..., Path], layout: Any) -> None:
    folder = made("mixtral", "target_parameters")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, file)
    assert "this base needs [4 times the rank, 128]" in problems(folder, layout("mixtral"))


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_bias": True}])
def test_linears_of_old_with_more_than_a_pair(
    config: dict[str, Any], former: Callable[..., Path], layout: Any
) -> None:
    said = problems(former("qwen2_moe", **config), layout("qwen2_moe"))
    assert f"{next(iter(config))} on experts and routers is not served" in said


def test_a_base_without_experts_says_so(made: Callable[..., Path], layout: Any) -> None:
    said = problems(made("mixtral", "target_parameters"), layout("llama"))
    assert "matches no parameter of the base tiny-llama, which has no experts" in said


def test_the_plain_base_knows_nothing_of_it(layout: Any) -> None:
    assert layout("llama").parameters == {}
    kinds = [one.shape.kind for one in layout("qwen2_moe").parameters.values()]
    assert kinds == [ModuleKind.EXPERTS, ModuleKind.EXPERTS, ModuleKind.ROUTER] * 2


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_the_self_check_passes_what_is_right(
    family: str, made: Callable[..., Path], former: Callable[..., Path], layout: Any
) -> None:
    kinds = [kind for kind in KINDS if kind.startswith("target_parameters")]
    for folder in (*(made(family, kind) for kind in kinds), former(family)):
        probe.check(folder, load(folder, "d", layout(family)))


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
    made: Callable[..., Path],
    former: Callable[..., Path],
    layout: Any,
) -> None:
    folder = made("mixtral", "target_parameters") if spelling == "now" else former("mixtral")
    weights = load(folder, "d", layout("mixtral"))
    effects = {
        path: tuple(spoil(one) if isinstance(one, ExpertLora) else one for one in mine)
        for path, mine in weights.effects.items()
    }
    with pytest.raises(InvalidAdapter, match=r"self-check failed.*experts"):
        probe.check(folder, replace(weights, effects=effects))


@pytest.fixture
def model(made: Callable[..., Path], layout: Any) -> LoraModel:
    """Two adapters on a Mixtral's experts and routers, in slots 1 and 2."""
    found = LoraModel(
        tiny.build_model("mixtral"),
        layout("mixtral"),
        num_slots=2,
        max_rank=8,
        dtype=torch.float32,
        device=CPU,
    )
    for slot in (1, 2):
        folder = made("mixtral", "target_parameters, router", seed=slot)
        found.place(slot, found.prepare(load(folder, f"d{slot}", layout("mixtral"))))
    return found


@torch.inference_mode()
def run(model: LoraModel, rows: list[Uses], path: str, x_TH: Tensor, *args: Tensor) -> Any:
    plan = build_plan([(1, uses) for uses in rows], dtype=torch.float32, device=CPU)
    with model.planned(plan, plan):
        return model._model.get_submodule(path)(x_TH, *args)


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x_TH = torch.randn(6, 64, generator=generator)
    index_TK = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(6)])
    return x_TH, index_TK, torch.rand(6, 2, generator=generator)


MIX: list[Uses] = [[], [(1, 1.0)], [(2, 0.5)], [(1, 0.5), (2, -1.0)], [], [(1, 1.0), (1, 1.0)]]


def test_a_token_s_answer_is_its_own(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    together_TH = run(model, MIX, OWNER, *tokens)
    alone = [
        run(model, [uses], OWNER, *(part[at : at + 1] for part in tokens))
        for at, uses in enumerate(MIX)
    ]
    torch.testing.assert_close(together_TH, torch.cat(alone), rtol=1e-5, atol=1e-5)
    base_TH = run(model, [[]] * 6, OWNER, *tokens)
    changed_T = (together_TH - base_TH).abs().amax(1) > 1e-2
    assert changed_T.tolist() == [bool(uses) for uses in MIX]
    torch.testing.assert_close(together_TH[[0, 4]], base_TH[[0, 4]], rtol=1e-5, atol=1e-6)


def test_named_twice_is_twice_the_scale(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    twice = run(model, MIX, OWNER, *tokens)[5]
    once = run(model, [*MIX[:5], [(1, 2.0)]], OWNER, *tokens)[5]
    torch.testing.assert_close(twice, once)


def test_a_router_chooses_for_its_own_rows_only(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    path = OWNER.replace("experts", "gate")
    mixed, base = (run(model, rows, path, tokens[0]) for rows in (MIX, [[]] * 6))
    for mine, theirs in zip(mixed, base, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine[[0, 4]], theirs[[0, 4]])
    assert (mixed[0] - base[0]).abs().amax(1).gt(1e-3).tolist() == [bool(uses) for uses in MIX]
    chosen_TK = torch.softmax(mixed[0], -1).topk(2).indices
    assert torch.equal(mixed[2], chosen_TK), "the choice is of the scores that it tells"


def test_a_cleared_slot_is_the_base_to_the_last_bit(
    model: LoraModel, tokens: tuple[Tensor, Tensor, Tensor]
) -> None:
    model.clear(1)
    base_TH = run(model, [[]] * 6, OWNER, *tokens)
    assert torch.equal(run(model, [[(1, 1.0)]] * 6, OWNER, *tokens), base_TH)


def test_no_weight_is_copied(made: Callable[..., Path], layout: Any) -> None:
    """What an adapter holds is its pairs."""
    weights = load(made("mixtral", "target_parameters, one of two"), "d", layout("mixtral"))
    pairs = 2 * 4 * 4 * (128 + 64) * 4
    assert weights.bytes == pairs


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS: dict[str, dict[str, Any]] = {
    # Stored the other way round, gate and up interleaved, with biases.
    "GptOss": {**_LOCAL, "head_dim": 16, "layer_types": ["full_attention"] * 2},
    "GraniteMoe": _LOCAL,
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0},
    "Phimoe": _LOCAL,
    # Chooses among groups of experts, with a correction that the router only keeps.
    "DeepseekV3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_mixtures_as_peft_s_own_layer(name: str, tmp_path: Path) -> None:
    """Every parameter that the layout offers, on models built alike; the network as it is."""
    config = getattr(transformers, f"{name}Config")(**{**_SMALL, **OTHERS[name]})
    torch.manual_seed(1)
    base = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    tiny.fill(base, seed=4)
    layout = layout_of(base, name)
    paths = [p for p, o in layout.parameters.items() if o.shape.kind is not ModuleKind.OTHER]
    targets = sorted({".".join(path.split(".")[-2:]) for path in paths})
    assert {"experts.gate_up_proj", "experts.down_proj"} <= {*targets}
    ids = torch.arange(2, 22)[None]
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=targets)
    theirs = get_peft_model(copy.deepcopy(base), lora)
    peft_made.fill(theirs, 0.3, seed=5)
    theirs.save_pretrained(tmp_path)
    with torch.inference_mode():
        plain, expected = base(ids).logits[0], theirs(ids).logits[0]
    mine = LoraModel(base, layout, num_slots=1, max_rank=8, dtype=torch.float32, device=CPU)
    mine.place(1, mine.prepare(load(tmp_path, "d", layout)))
    plan = build_plan([(20, [(1, 1.0)])], dtype=torch.float32, device=CPU)
    with torch.inference_mode(), mine.planned(plan, plan):
        found = base(ids).logits[0]
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_config_s_version_is_read(made: Callable[..., Path]) -> None:
    config = json.loads((made("mixtral", "target_parameters") / "adapter_config.json").read_text())
    assert config["peft_version"], "or every adapter with equal sides would be refused"


def test_bases_that_differ_in_their_experts_alone_are_told_apart(layout: Any) -> None:
    """Or an adapter that was verified on one would be taken for one that fits the other."""
    base = layout("qwen3_moe")
    path = "model.layers.0.mlp.experts.down_proj"
    one = base.parameters[path]
    wider = replace(one, shape=replace(one.shape, in_features=48))
    other = replace(base, parameters={**base.parameters, path: wider})
    assert fingerprint(other) != fingerprint(base)
