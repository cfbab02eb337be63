"""Norms against the deltas themselves, and a picture that is a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.peft_folder import PeftFolder
from lorry_adapters.tools.heatmap import svg
from lorry_adapters.tools.norms import base_norms, norms, place
from support.peft_deltas import deltas


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", ["both_patterns_rslora", "head"])
def test_norms_are_the_deltas(
    family: str, variant: str, tiny_model, peft_adapter, load_peft
) -> None:
    folder = peft_adapter(family, variant)
    model = load_peft(family, folder)
    expected = deltas(model, "a0")
    base = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    with PeftFolder(folder) as opened:
        found = norms(opened, base_norms(tiny_model(family), opened.pairs()[0]))
    assert {one.module for one in found} == expected.keys()
    for one in found:
        assert one.norm == pytest.approx(float(expected[one.module].norm()), rel=1e-4)
        if one.base is None:
            assert (family, one.module) == ("gpt2", "lm_head"), "only a tied head has no own weight"
            continue
        weight = base.get_submodule(one.module).weight
        assert one.base == pytest.approx(float(weight.norm()), rel=1e-4)
        assert one.relative == pytest.approx(one.norm / one.base)


def test_files_that_leave_out_the_first_part_of_a_path_are_read(
    tiny_model, peft_adapter, tmp_path: Path
) -> None:
    tensors = load_file(tiny_model("gpt2") / "model.safetensors")
    short = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    save_file(short, tmp_path / "model.safetensors")
    with PeftFolder(peft_adapter("gpt2", "plain")) as opened:
        pairs = opened.pairs()[0]
    assert base_norms(tmp_path, pairs) == base_norms(tiny_model("gpt2"), pairs)
    assert len(base_norms(tmp_path, pairs)) == len(pairs)


def test_a_number_that_is_none_is_refused(peft_adapter, copied) -> None:
    folder = copied(peft_adapter("llama", "plain"))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, file)
    with PeftFolder(folder) as opened, pytest.raises(InvalidAdapter, match="NaN"):
        norms(opened)


def test_the_picture_has_a_cell_for_each_module(peft_adapter) -> None:
    with PeftFolder(peft_adapter("llama", "layers_to_transform")) as opened:
        found = norms(opened)
    root = ElementTree.fromstring(svg(found, "a < b & c"))
    space = {"svg": "http://www.w3.org/2000/svg"}
    titles = [one.text for one in root.findall(".//svg:rect/svg:title", space)]
    assert len(titles) == len(found)
    assert all(title and title.startswith("layer 1 ") for title in titles)
    texts = {one.text for one in root.findall(".//svg:text", space)}
    assert {"a < b & c", "self_attn.q_proj", "1"} <= texts


@pytest.mark.parametrize(
    ("module", "layer", "part"),
    [
        ("model.layers.12.mlp.up_proj", 12, "mlp.up_proj"),
        ("transformer.h.0.attn.c_attn", 0, "attn.c_attn"),
        ("model.layers.3.mlp.experts.7.w1", 3, "mlp.experts.7.w1"),
        ("lm_head", None, "lm_head"),
    ],
)
def test_places(module: str, layer: int | None, part: str) -> None:
    assert place(module) == (layer, part)
