"""Merging without a base gives what PEFT's `add_weighted_adapter` gives with one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import model as lora_model
from safetensors.torch import load_file, save_file

from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.lora.merge import METHODS, Part, Recipe, merge
from support.peft_adapters import edit_config
from support.peft_deltas import deltas

WEIGHTS = (0.7, -0.3)


def recipe_for(method: str, **more: object) -> Recipe:
    density = None if method in ("linear", "cat", "svd") else 0.4
    return Recipe(method, density=density, **more)


def merged(folder: Path, recipe: Recipe, *parts: Path, weights=WEIGHTS) -> Path:
    given = [
        Part(path, w, f"adapter {i}")
        for i, (path, w) in enumerate(zip(parts, weights, strict=True))
    ]
    merge(given, recipe).save(folder)
    return folder


# A Conv1D's delta is transposed in PEFT: there, dare drops other numbers from the same seed.
CASES = [("llama", method) for method in METHODS]
CASES += [("gpt2", method) for method in METHODS if not re.fullmatch("dare.*svd", method)]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_every_method_is_pefts(
    family: str,
    method: str,
    peft_adapter,
    load_peft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One module a layer: dare draws in PEFT's order of modules, which then is the layers'.
    first = peft_adapter(family, "one_module")
    second = peft_adapter(family, "one_module", seed=1)
    out = merged(tmp_path / "out", recipe_for(method, seed=5), first, second)
    model = load_peft(family, first, second, out)
    # PEFT draws start values for the new adapter first; this comes right after.
    monkeypatch.setattr(lora_model, "_freeze_adapter", lambda *_: torch.manual_seed(5))
    model.add_weighted_adapter(
        ["a0", "a1"], list(WEIGHTS), "theirs", combination_type=method, density=0.4
    )
    ours, theirs = deltas(model, "a2"), deltas(model, "theirs")
    assert ours.keys() == theirs.keys() and ours
    for module, delta in ours.items():
        torch.testing.assert_close(delta, theirs[module], rtol=1e-4, atol=1e-5)
        assert delta.abs().max() > 1e-2


def test_cat_is_the_sum_whatever_the_ranks(peft_adapter, load_peft, tmp_path: Path) -> None:
    """Different ranks, different modules, rsLoRA, patterns."""
    first = peft_adapter("llama", "both_patterns_rslora")
    second = peft_adapter("llama", "mlp_only")
    out = merged(tmp_path / "out", Recipe("cat"), first, second)
    model = load_peft("llama", first, second, out)
    one, two, both = (deltas(model, name) for name in ("a0", "a1", "a2"))
    assert both.keys() == one.keys() | two.keys()
    for module, delta in both.items():
        zero = torch.zeros_like(delta)
        expected = WEIGHTS[0] * one.get(module, zero) + WEIGHTS[1] * two.get(module, zero)
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)


def test_svd_of_full_rank_is_the_sum(peft_adapter, load_peft, tmp_path: Path) -> None:
    first, second = peft_adapter("llama", "plain"), peft_adapter("llama", "odd_rank")
    out = merged(tmp_path / "out", Recipe("svd", rank=13), first, second)
    model = load_peft("llama", first, second, out)
    one, two, both = (deltas(model, name) for name in ("a0", "a1", "a2"))
    for module, delta in both.items():
        expected = WEIGHTS[0] * one[module] + WEIGHTS[1] * two[module]
        torch.testing.assert_close(delta, expected, rtol=1e-3, atol=1e-4)


def test_modules_selected_by_layer_are_named_whole(peft_adapter, load_peft, tmp_path: Path) -> None:
    first = peft_adapter("llama", "layers_to_transform")
    second = peft_adapter("llama", "exclude_modules")
    out = merged(tmp_path / "out", Recipe("cat"), first, second)
    model = load_peft("llama", first, second, out)
    assert deltas(model, "a2").keys() == deltas(model, "a0").keys() | deltas(model, "a1").keys()


def test_a_seed_decides_what_dare_drops(peft_adapter, tmp_path: Path) -> None:
    parts = peft_adapter("llama", "plain"), peft_adapter("llama", "plain", seed=1)
    before = torch.random.get_rng_state()
    files = [
        (merged(tmp_path / name, Recipe("dare_ties", 0.5, seed=seed), *parts))
        / "adapter_model.safetensors"
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1] != contents[2]
    assert torch.equal(torch.random.get_rng_state(), before), "others' draws are disturbed"


def test_the_type_is_kept(peft_adapter, tmp_path: Path) -> None:
    parts = []
    for seed in (0, 1):
        source, target = peft_adapter("llama", "plain", seed=seed), tmp_path / f"half{seed}"
        target.mkdir()
        tensors = load_file(source / "adapter_model.safetensors")
        save_file(
            {key: value.bfloat16() for key, value in tensors.items()},
            target / "adapter_model.safetensors",
        )
        (target / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        parts.append(target)
    out = merged(tmp_path / "out", Recipe("ties", 0.5), *parts)
    kinds = {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    mixed = merged(tmp_path / "mixed", Recipe("cat"), parts[0], peft_adapter("llama", "plain"))
    kinds = {tensor.dtype for tensor in load_file(mixed / "adapter_model.safetensors").values()}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_matrices_of_different_ranks_are_refused(method: str, peft_adapter, tmp_path: Path) -> None:
    parts = peft_adapter("llama", "plain"), peft_adapter("llama", "small")
    with pytest.raises(InvalidAdapter, match=r"4 and 8.*cat"):
        merged(tmp_path / "out", recipe_for(method), *parts)
    assert not (tmp_path / "out").exists()


def test_every_problem_is_listed(peft_adapter, copied) -> None:
    dora, other = copied(peft_adapter("llama", "plain")), copied(peft_adapter("gpt2", "plain"))
    edit_config(dora, use_dora=True)
    edit_config(other, init_lora_weights="pissa_niter_4")
    with pytest.raises(InvalidAdapter) as caught:
        merge([Part(dora, 1.0, "first"), Part(other, 1.0, "second")], Recipe("cat"))
    problems = " ".join(caught.value.problems)
    assert "first is DoRA" in problems
    assert "second is PiSSA" in problems


def test_adapters_of_different_bases_are_refused(peft_adapter, copied) -> None:
    folder = copied(peft_adapter("llama", "plain"))
    tensors = load_file(folder / "adapter_model.safetensors")
    wider = {k: torch.cat([v, v], dim=1) if "lora_A" in k else v for k, v in tensors.items()}
    save_file(wider, folder / "adapter_model.safetensors")
    parts = [Part(peft_adapter("llama", "plain"), 1.0, "a"), Part(folder, 1.0, "b")]
    with pytest.raises(InvalidAdapter, match="different bases"):
        merge(parts, Recipe("cat"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "average"}, "no method 'average'"),
        ({"method": "ties"}, "needs a density"),
        ({"method": "cat", "density": 0.5}, "leave the density out"),
        ({"method": "ties", "density": 0.0}, "above 0"),
        ({"method": "ties", "density": float("nan")}, "above 0"),
        ({"method": "ties", "density": 0.5, "majority_sign_method": "loudest"}, "'loudest'"),
        ({"method": "cat", "rank": 4}, "svd"),
        ({"method": "svd", "rank": 0}, "at least 1"),
        ({"method": "svd", "seed": -1}, "seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_recipe_that_makes_no_sense_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ToolError, match=said):
        Recipe(**fields)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, float("inf")), (1.0, 2000.0)])
def test_weights_that_make_no_sense_are_refused(weights, peft_adapter) -> None:
    folder = peft_adapter("llama", "plain")
    with pytest.raises(ToolError):
        merge([Part(folder, weight, "a") for weight in weights], Recipe("cat"))


def test_a_cache_key_is_of_content_weights_and_recipe() -> None:
    parts = [("sha256:aa", 0.7), ("sha256:bb", 0.3)]
    key = Recipe("ties", 0.5).key(parts)
    assert key == Recipe("ties", 0.5).key(list(parts))
    others = [
        Recipe("ties", 0.6).key(parts),
        Recipe("ties", 0.5, seed=1).key(parts),
        Recipe("ties", 0.5).key([("sha256:aa", 0.7), ("sha256:bb", 0.4)]),
        Recipe("ties", 0.5).key(parts[::-1]),
    ]
    assert key not in others and len(set(others)) == len(others)


def test_the_config_says_where_it_comes_from(peft_adapter, tmp_path: Path) -> None:
    parts = peft_adapter("llama", "rslora"), peft_adapter("llama", "rslora", seed=1)
    out = merged(tmp_path / "out", Recipe("linear"), *parts)
    config = json.loads((out / "adapter_config.json").read_text())
    given = json.loads((parts[0] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == given["base_model_name_or_path"]
    assert config["r"] == config["lora_alpha"] == given["r"]
    assert not config.get("use_rslora")
