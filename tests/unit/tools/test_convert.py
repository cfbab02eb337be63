"""What is found in the wild -> a folder that PEFT loads whole and that does the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    MissConfig,
    OSFConfig,
    PeanutConfig,
    PolyConfig,
    PromptTuningConfig,
    PsoftConfig,
    ShiraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.tools.convert import convert
from support.peft_adapters import edit_config
from support.peft_deltas import deltas

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"

Rename = Callable[[str], str]

LAYOUTS: dict[str, Rename] = {
    "as PEFT has it": lambda key: key,
    "without the prefix": lambda key: key.removeprefix(PREFIX),
    "with the prefix twice": lambda key: PREFIX + key,
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "with another name, without prefix": lambda key: key.removeprefix(PREFIX).replace(
        ".weight", ".my_task.weight"
    ),
    "compiled": lambda key: key.replace(PREFIX, PREFIX + "_orig_mod."),
    "data parallel": lambda key: "module." + key,
    "FSDP": lambda key: key.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
}


def rename(folder: Path, change: Rename) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({change(key): value for key, value in tensors.items()}, folder / WEIGHTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_pefts(layout, peft_adapter, copied, load_peft, tmp_path) -> None:
    good = peft_adapter("llama", "rank_pattern")
    found = copied(good)
    rename(found, LAYOUTS[layout])
    result = convert(found)
    assert bool(result.changes) == (layout != "as PEFT has it")
    result.save(tmp_path / "out")
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == load_file(good / WEIGHTS).keys()
    model = load_peft("llama", good, tmp_path / "out")
    before, after = deltas(model, "a0"), deltas(model, "a1")
    assert before.keys() == after.keys() and before
    assert all(torch.equal(before[module], after[module]) for module in before)


def test_a_legacy_config_loses_only_what_says_nothing(
    peft_adapter, copied, load_peft, tmp_path: Path
) -> None:
    good = peft_adapter("llama", "plain")
    found = copied(good)
    edit_config(found, enable_lora=None, merge_weights=True, brand_new=False, target_modules=None)
    result = convert(found)
    said = " ".join(result.changes)
    assert all(word in said for word in ("enable_lora", "merge_weights", "target_modules"))
    result.save(tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert not {"enable_lora", "merge_weights", "brand_new"} & config.keys()
    model = load_peft("llama", good, tmp_path / "out")
    before, after = deltas(model, "a0"), deltas(model, "a1")
    assert all(torch.equal(before[module], after[module]) for module in before)


def test_every_problem_is_listed(peft_adapter, copied) -> None:
    found = copied(peft_adapter("llama", "plain"))
    edit_config(found, enable_lora=[True, False], use_brand_new_thing=3)
    tensors = load_file(found / WEIGHTS)
    first = sorted(tensors)[0]
    tensors[first.replace(".weight", ".other.weight")] = tensors[first].clone()
    save_file(tensors, found / WEIGHTS)
    with pytest.raises(InvalidAdapter) as caught:
        convert(found)
    said = " ".join(caught.value.problems)
    assert "enable_lora" in said and "use_brand_new_thing" in said and "both mean" in said


@pytest.mark.parametrize(
    "method", ["dora", "ia3", "saved", "prompt", "osf", "psoft", "peanut", "poly"]
)
def test_other_kinds_lose_the_adapters_name(method: str, tiny_model, tmp_path: Path) -> None:
    configs = {
        "dora": LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]),
        "ia3": IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "osf": OSFConfig(target_modules=["q_proj"], effective_rank=60),
        "psoft": PsoftConfig(target_modules=["q_proj"], r=4, psoft_alpha=4),
        "peanut": PeanutConfig(target_modules=["q_proj"], r=4, depth=2),
        "poly": PolyConfig(target_modules=["q_proj"], r=4, n_tasks=2),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    model = get_peft_model(base, configs[method])
    model.save_pretrained(tmp_path / "good")
    good = load_file(tmp_path / "good" / WEIGHTS)
    raw = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if ".default" in key and method != "prompt"
    }
    found = tmp_path / "found"
    found.mkdir()
    save_file(raw or good, found / WEIGHTS)
    shutil.copy(tmp_path / "good/adapter_config.json", found)
    result = convert(found)
    assert result.tensors.keys() == good.keys()
    assert all(torch.equal(result.tensors[key], good[key]) for key in good)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_becomes_peft(kind: str, tiny_model, load_peft, tmp_path: Path) -> None:
    """As MLX-LM has it: y + scale (x a) b, and for a DoRA m / |W + scale (a b)'| times that."""
    generator = torch.Generator().manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    scale, rank, tensors, expected = 3.5, 4, {}, {}
    x_TI = torch.randn(5, 64, generator=generator)
    for layer in (0, 1):
        name = f"model.layers.{layer}.self_attn.q_proj"
        weight_OI = base.get_submodule(name).weight.detach()
        a_IR, b_RO = (
            torch.randn(*shape, generator=generator) for shape in ((64, rank), (rank, 64))
        )
        tensors |= {f"{name}.lora_a": a_IR, f"{name}.lora_b": b_RO}
        y_TO = x_TI @ weight_OI.T + scale * (x_TI @ a_IR) @ b_RO
        if kind == "dora":
            tensors[f"{name}.m"] = m_O = torch.rand(64, generator=generator) + 0.5
            y_TO = y_TO * m_O / (weight_OI + (scale * b_RO.T) @ a_IR.T).norm(dim=1)
        expected[name] = y_TO
    found = tmp_path / "found"
    found.mkdir()
    save_file(tensors, found / "adapters.safetensors")
    config = {
        "fine_tune_type": kind,
        "num_layers": 2,
        "model": "mlx-community/tiny",
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0},
        "batch_size": 4,
    }
    (found / "adapter_config.json").write_text(json.dumps(config))
    convert(found).save(tmp_path / "out")
    model = load_peft("llama", tmp_path / "out").base_model.model
    for name, y_TO in expected.items():
        torch.testing.assert_close(model.get_submodule(name)(x_TI), y_TO, rtol=1e-4, atol=1e-4)


def test_an_mlx_model_that_was_trained_whole_is_refused(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full"}))
    with pytest.raises(InvalidAdapter) as caught:
        convert(tmp_path)
    said = " ".join(caught.value.problems)
    assert "fine_tune_type is 'full'" in said and "no counterpart" in said


def test_bone_is_miss(tiny_model, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    config = MissConfig(r=4, target_modules=["q_proj"], init_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "old")
    theirs = load_file(tmp_path / "old" / WEIGHTS)
    rename(tmp_path / "old", lambda key: key.replace(".miss_", ".bone_"))
    edit_config(tmp_path / "old", peft_type="BONE")
    converted = convert(tmp_path / "old")
    assert converted.config["peft_type"] == "MISS"
    assert converted.tensors.keys() == theirs.keys()
    assert all(torch.equal(converted.tensors[key], theirs[key]) for key in theirs)


def test_places_stay_whole_numbers(tiny_model, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    model = get_peft_model(base, ShiraConfig(target_modules=["q_proj"], r=2, random_seed=1))
    model.save_pretrained(tmp_path)
    good = load_file(tmp_path / WEIGHTS)
    bare = {key.removeprefix("base_model.model."): value for key, value in good.items()}
    save_file(bare, tmp_path / WEIGHTS)
    found = convert(tmp_path).tensors
    assert found.keys() == good.keys()
    assert all(torch.equal(found[key], good[key]) for key in good)
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int32}


def test_two_adapters_in_a_file_are_refused(peft_adapter, copied) -> None:
    found = copied(peft_adapter("llama", "plain"))
    names = iter(["a", "b"] * 1000)
    rename(found, lambda key: key.replace(".weight", f".{next(names)}.weight"))
    with pytest.raises(InvalidAdapter, match="more than one adapter"):
        convert(found)


@pytest.fixture
def mutated(tiny_model, tmp_path: Path):
    """`mutated("pissa", r=4)`: folders of the start and of the trained adapter, PEFT's own
    conversion of it, and the logits that the trained model gives."""

    def make(start: str, **more) -> tuple[Path, Path, Path, torch.Tensor]:
        base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            init_lora_weights=start,
            target_modules=["q_proj", "down_proj"],
            **more,
        )
        model = get_peft_model(base, config)
        first, last, theirs = tmp_path / "first", tmp_path / "last", tmp_path / "theirs"
        # As PEFT's documentation has it: the start is saved as plain LoRA.
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(first)
        model.peft_config["default"].init_lora_weights = start
        random = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
        model.save_pretrained(last)
        with torch.no_grad():
            logits = model.eval()(IDS).logits
        if not (more.get("use_rslora") and more.get("rank_pattern")):
            model.save_pretrained(theirs, path_initial_model_for_weight_conversion=str(first))
        return first, last, theirs, logits

    return make


IDS = torch.tensor([[1, 40, 77, 9, 200, 31]])


@pytest.mark.parametrize(
    ("start", "more"),
    [
        ("pissa", {"r": 4, "lora_alpha": 8}),
        ("pissa_niter_4", {"r": 4, "lora_alpha": 8}),
        ("olora", {"r": 4, "lora_alpha": 8}),
        ("pissa", {"r": 4, "lora_alpha": 8, "use_rslora": True}),
        ("pissa", {"r": 4, "rank_pattern": {"down_proj": 6}, "alpha_pattern": {"q_proj": 12}}),
        ("pissa", {"r": 4, "rank_pattern": {"down_proj": 6}, "use_rslora": True}),
    ],
    ids=["pissa", "fast pissa", "olora", "rslora", "patterns", "rslora with patterns"],
)
def test_a_changed_base_becomes_plain_lora(start, more, mutated, load_peft, tmp_path: Path) -> None:
    first, last, theirs, logits = mutated(start, **more)
    with pytest.raises(ToolError, match="before the first step of training is needed") as caught:
        convert(last)
    assert caught.value.message.facts == {"argument": "initial"}
    convert(last, first).save(tmp_path / "ours")
    model = load_peft("llama", tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-3, atol=1e-3)
    if theirs.exists():
        for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights"):
            ours_has, theirs_has = (
                json.loads((folder / "adapter_config.json").read_text())[name]
                for folder in (tmp_path / "ours", theirs)
            )
            assert ours_has == theirs_has, name
        ours, pefts = load_file(tmp_path / "ours" / WEIGHTS), load_file(theirs / WEIGHTS)
        assert ours.keys() == pefts.keys()
        assert all(torch.equal(ours[key], pefts[key]) for key in ours)


def test_the_start_of_another_training_is_refused(mutated, peft_adapter) -> None:
    _, last, _, _ = mutated("pissa", r=4)
    with pytest.raises(InvalidAdapter) as caught:
        convert(last, peft_adapter("llama", "plain"))
    said = " ".join(caught.value.problems)
    assert "r is 4, and 8" in said and "another training" in said and "more" in said


def test_a_start_that_takes_nothing_from_the_base_is_refused(peft_adapter, copied) -> None:
    folder = peft_adapter("llama", "plain")
    zero = copied(folder)
    tensors = load_file(zero / WEIGHTS)
    save_file({k: v * ("lora_A" in k) for k, v in tensors.items()}, zero / WEIGHTS)
    with pytest.raises(ToolError, match="nothing to subtract"):
        convert(folder, zero)


def test_a_start_that_the_config_hides_is_subtracted(mutated, load_peft, tmp_path: Path) -> None:
    first, last, _, logits = mutated("pissa", r=4)
    edit_config(last, init_lora_weights=True)
    convert(last, first).save(tmp_path / "ours")
    with torch.no_grad():
        found = load_peft("llama", tmp_path / "ours")(IDS).logits
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)


def test_a_rank_that_is_no_number_is_refused(mutated) -> None:
    first, last, _, _ = mutated("pissa", r=4)
    for folder in (first, last):
        edit_config(folder, r="4", rank_pattern={"q_proj": None})
    with pytest.raises(InvalidAdapter) as caught:
        convert(last, first)
    assert "'r' is '4'" in caught.value.problems[0] and "q_proj" in caught.value.problems[1]


def test_a_config_with_nan_is_no_json(peft_adapter, copied) -> None:
    folder = copied(peft_adapter("llama", "plain"))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": NaN}')
    with pytest.raises(InvalidAdapter, match="NaN is not JSON"):
        convert(folder)


def test_dora_on_a_changed_base_has_no_plain_form(mutated) -> None:
    first, last, _, _ = mutated("pissa", r=4)
    for folder in (first, last):
        edit_config(folder, use_dora=True)
    with pytest.raises(InvalidAdapter, match="DoRA"):
        convert(last, first)


def test_loftq_cannot_be_converted(peft_adapter, copied) -> None:
    folder = copied(peft_adapter("llama", "plain"))
    edit_config(folder, init_lora_weights="loftq")
    with pytest.raises(ToolError, match="LoftQ"):
        convert(folder)
