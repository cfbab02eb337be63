"""The tools on adapters for experts: right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorry.model.layout import layout_of
from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.lora.merge import Part, Recipe, merge
from lorry_adapters.lora.peft_folder import PeftFolder
from lorry_adapters.lora.weights import inspect, load
from lorry_adapters.tools.bake import bake
from lorry_adapters.tools.changes import changes
from lorry_adapters.tools.convert import convert
from lorry_adapters.tools.norms import norms
from lorry_adapters.tools.summary import summarize
from support import former_experts, peft_made, tiny
from support.expert_orders import UNSLOTH, detail, regroup
from support.former_experts import FormerAdapter
from support.peft_adapters import edit_config
from support.peft_kinds import KINDS
from support.peft_made import Made

LEAVES = ("gate_up_proj", "down_proj")
GROUPED = "grouped_by_expert"
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
IDS = list(range(40, 60))


@pytest.fixture(scope="module")
def base() -> Callable[[str], Any]:
    return tiny.build_model


@pytest.fixture
def stacked(base: Callable[[str], Any], tmp_path: Path) -> Callable[..., Made]:
    def make(family: str, kind: str = "target_parameters, patterns", seed: int = 1) -> Made:
        return peft_made.make(KINDS[kind], family, base(family), tmp_path / f"a{seed}", seed=seed)

    return make


@pytest.fixture
def former(base: Callable[[str], Any], tmp_path: Path) -> Callable[..., FormerAdapter]:
    def make(family: str, seed: int = 5, **config: Any) -> FormerAdapter:
        return former_experts.make(family, base(family), tmp_path / f"f{seed}", seed=seed, **config)

    return make


def wrappers(model: Any) -> dict[str, torch.Tensor]:
    """The deltas of PEFT's wrappers of parameters, by path."""
    return {
        f"{path.removeprefix('base_model.model.').replace('.base_layer', '')}"
        f".{module.parameter_name}": module.get_delta_weight("default")
        for path, module in model.named_modules()
        if hasattr(module, "parameter_name")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_every_expert_s_delta(family: str, stacked: Callable[..., Made]) -> None:
    made = stacked(family)
    expected = wrappers(made.model)
    with PeftFolder(made.folder) as opened:
        found = {one.module: one for one in norms(opened)}
        parts = {part.module: part for part in summarize(opened).parts}
    assert len(expected) == 4 and {*expected} <= {*found}
    for path, delta in expected.items():
        assert found[path].norm == pytest.approx(float(delta.norm()), rel=1e-4)
    assert {path: parts[path].rank for path in expected} == {
        path: 6 if path.endswith("gate_up_proj") else 4 for path in expected
    }
    assert parts["model.layers.1.mlp.experts.down_proj"].strength == 0.75


def test_a_base_at_hand_changes_nothing_of_it(
    stacked: Callable[..., Made], tiny_model: Callable[[str], Path]
) -> None:
    made = stacked("mixtral", "target_parameters, router")
    layout = layout_of(tiny.build_model("mixtral"), "m")
    found, left_out = changes(load(made.folder, "d", layout), layout, tiny_model("mixtral"))
    expected = wrappers(made.model)
    norm_of = {one.module: one.norm for one in found}
    for path, delta in expected.items():
        name = path.removesuffix(".weight")
        assert norm_of[name] == pytest.approx(float(delta.norm()), rel=1e-4), name
    assert left_out == []


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_baked_is_what_it_answers(
    family: str,
    scale: float,
    stacked: Callable[..., Made],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    made = stacked(family, "target_parameters, router")
    bake(tiny_model(family), made.folder, scale, "float32", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    found = peft_made.prompt_logprobs(model, IDS)
    assert found == pytest.approx(made.logprobs(IDS, scale), abs=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_linears_of_old_are_baked(
    family: str,
    former: Callable[..., FormerAdapter],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    made = former(family, lora_dropout=0.1)
    bake(tiny_model(family), made.folder, 1.0, "float32", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    whole = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32).eval()
    expected = peft_made.prompt_logprobs(made.merged(whole), IDS)
    assert peft_made.prompt_logprobs(model, IDS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "config", "said"),
    [
        ("mixtral", {"use_rslora": True}, "at another strength"),
        ("mixtral", {"alpha_pattern": {"w2": 64}}, "at another strength"),
        ("qwen2_moe", {"router": False}, "this base has no place for"),
    ],
)
def test_what_peft_would_bake_otherwise_is_refused(
    family: str,
    config: dict[str, Any],
    said: str,
    former: Callable[..., FormerAdapter],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    made = former(family, **config)
    with pytest.raises(InvalidAdapter, match=said):
        bake(tiny_model(family), made.folder, 1.0, "float32", tmp_path / "out")


def test_an_older_order_is_not_baked(
    stacked: Callable[..., Made], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    made = stacked("qwen2_moe")
    edit_config(made.folder, peft_version="0.18.1")
    with pytest.raises(InvalidAdapter, match=r"before 0\.19\.1"):
        bake(tiny_model("qwen2_moe"), made.folder, 1.0, "float32", tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
def test_parameters_are_not_merged(method: str, stacked: Callable[..., Made]) -> None:
    parts = [Part(stacked("mixtral", seed=seed).folder, 1.0, f"a{seed}") for seed in (1, 2)]
    with pytest.raises(InvalidAdapter, match="a1 is on bare parameters") as refused:
        merge(parts, Recipe(method))
    assert len(refused.value.problems) == 2


def test_linears_of_old_are_merged_and_served(
    former: Callable[..., FormerAdapter], tmp_path: Path
) -> None:
    parts = [Part(former("mixtral", seed=seed).folder, 0.5, f"f{seed}") for seed in (5, 6)]
    merge(parts, Recipe("cat")).save(tmp_path / "out")
    facts = inspect(tmp_path / "out", layout_of(tiny.build_model("mixtral"), "m"), max_rank=8)
    assert facts.rank == 8


def test_converting_leaves_them_as_they_are(stacked: Callable[..., Made], tmp_path: Path) -> None:
    made = stacked("qwen3_moe")
    convert(made.folder).save(tmp_path / "out")
    layout = layout_of(tiny.build_model("qwen3_moe"), "m")
    before, after = (inspect(folder, layout, 64) for folder in (made.folder, tmp_path / "out"))
    assert after == before


def test_columns_of_another_order_are_put_in_pefts(
    stacked: Callable[..., Made], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    made, layout = stacked("qwen3_moe"), layout_of(tiny.build_model("qwen3_moe"), "m")
    plain = load_file(made.folder / "adapter_model.safetensors")
    with PeftFolder(made.folder) as opened:
        expected = norms(opened)
    regroup(made.folder, auto_mapping=UNSLOTH)
    assert inspect(made.folder, layout, 64).warnings
    result = convert(made.folder, experts_grouped=True)
    result.save(tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[key], plain[key]) for key in plain)
    assert "4 keys: the columns of each expert in PEFT's order" in result.changes
    # Nobody turns it a second time: not this server, and not Unsloth, which reads the same field.
    assert inspect(tmp_path / "out", layout, 64).warnings == ()
    assert result.config["auto_mapping"] == {**UNSLOTH, "lora_B_layout": "rank_major"}
    with pytest.raises(ToolError, match="the config says which, in lora_B_layout"):
        convert(tmp_path / "out", experts_grouped=True)

    # A config that says it is enough, and every tool reads the experts as they are.
    edit_config(made.folder, unsloth_fused_expert_lora=detail(**dict.fromkeys(LEAVES, GROUPED)))
    with PeftFolder(made.folder) as opened:
        assert [one.norm for one in norms(opened)] == pytest.approx([one.norm for one in expected])
    with pytest.raises(InvalidAdapter, match="in another order than PEFT's, by its config"):
        bake(tiny_model("qwen3_moe"), made.folder, 1.0, "float32", tmp_path / "baked")
    again = convert(made.folder)
    assert all(torch.equal(again.tensors[key], plain[key]) for key in plain)
    assert "unsloth_fused_expert_lora" not in again.config


def test_an_order_that_peft_has_already_is_noted_where_peft_reads_it(
    stacked: Callable[..., Made],
) -> None:
    made = stacked("mixtral")
    edit_config(made.folder, lora_B_layout="rank_major")
    result = convert(made.folder)
    assert result.config["auto_mapping"]["lora_B_layout"] == "rank_major"
    assert not any("keys: the columns" in change for change in result.changes)
    edit_config(made.folder, lora_B_layout="sideways")
    with pytest.raises(InvalidAdapter, match="must be rank_major or grouped_by_expert"):
        convert(made.folder)


def test_without_experts_there_is_no_order(peft_adapter: Callable[..., Path]) -> None:
    with pytest.raises(ToolError, match="it has none of rank above 1"):
        convert(peft_adapter("llama", "plain"), experts_grouped=True)
