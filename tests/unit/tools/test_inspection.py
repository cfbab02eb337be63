"""What an adapter's files tell, against PEFT's own model and the file's tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lorry_adapters.errors import OutOfMemory
from lorry_adapters.lora import room
from lorry_adapters.tools.inspection import GAIN, PAIR, inspect
from support.peft_deltas import deltas
from support.peft_kinds import KINDS
from support.peft_made import ADAPTER, load_base, make

KIND_NAMES = (
    "lora",
    "rank_pattern",
    "dora",
    "ia3, feedforward",
    "prompt tuning",
    "modules_to_save=head",
    "vera",
)


@pytest.mark.parametrize("name", KIND_NAMES)
def test_every_parameter_belongs_to_a_module(name: str, tiny_model, tmp_path: Path) -> None:
    make(KINDS[name], "llama", load_base(tiny_model("llama")), tmp_path)
    found = inspect(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(one.parameters for one in found.modules) == sum(t.numel() for t in tensors.values())
    assert sum(one.bytes for one in found.modules) == sum(t.nbytes for t in tensors.values())
    assert len({one.module for one in found.modules}) == len(found.modules)
    assert found.summary.acts is not False


@pytest.mark.parametrize("name", ["lora", "rank_pattern", "rslora", "modules_to_save=head"])
def test_a_norm_is_of_the_delta_that_peft_adds(name: str, tiny_model, tmp_path: Path) -> None:
    made = make(KINDS[name], "llama", load_base(tiny_model("llama")), tmp_path)
    found = inspect(tmp_path)
    assert found.measure == PAIR
    expected = deltas(made.model, ADAPTER)
    measured = {one.module: one.norm for one in found.modules if one.norm is not None}
    assert measured == pytest.approx(
        {module: float(delta.norm()) for module, delta in expected.items()}, rel=1e-4
    )
    unmeasured = [one for one in found.modules if one.norm is None]
    assert [one.module for one in unmeasured] == (["lm_head"] if "head" in name else [])
    ranks = {one.module: one.rank for one in found.modules if one.rank is not None}
    assert ranks == {
        path.removeprefix("base_model.model."): layer.r[ADAPTER]
        for path, layer in made.model.named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER in layer.r
    }


def test_a_dora_is_its_pair_and_its_magnitudes(tiny_model, tmp_path: Path) -> None:
    made = make(KINDS["dora"], "llama", load_base(tiny_model("llama")), tmp_path)
    found = inspect(tmp_path)
    assert found.measure == PAIR and "DoRA" in found.summary.kinds
    layers = {
        path.removeprefix("base_model.model."): layer
        for path, layer in made.model.named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER in layer.r
    }
    assert {one.module for one in found.modules} == layers.keys()
    for one in found.modules:
        layer = layers[one.module]
        delta = layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
        norm = float(delta.norm()) * layer.scaling[ADAPTER]
        assert one.norm == pytest.approx(norm, rel=1e-4)
        assert one.kinds == ("lora", "lora_magnitude_vector")


def test_gains_are_measured_from_one(tiny_model, tmp_path: Path) -> None:
    make(KINDS["ia3, feedforward"], "llama", load_base(tiny_model("llama")), tmp_path)
    found = inspect(tmp_path)
    assert found.measure == GAIN
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    expected = {
        key.removeprefix("base_model.model.").removesuffix(".ia3_l"): float(
            torch.linalg.vector_norm(value.double() - 1)
        )
        for key, value in tensors.items()
    }
    assert {one.module: one.norm for one in found.modules} == pytest.approx(expected)


@pytest.mark.parametrize("name", ["prompt tuning", "vera"])
def test_what_the_files_do_not_tell_has_no_norm(name: str, tiny_model, tmp_path: Path) -> None:
    make(KINDS[name], "llama", load_base(tiny_model("llama")), tmp_path)
    found = inspect(tmp_path)
    assert found.measure is None
    assert {one.norm for one in found.modules} == {None}


def test_memory_is_asked_for_before_it_is_taken(
    peft_adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available", lambda: 1000)
    with pytest.raises(OutOfMemory, match="inspecting the adapter"):
        inspect(peft_adapter("llama", "plain"))
