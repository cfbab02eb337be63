"""The layout that uploads are verified against is the model's own, quantized or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorry.model.base_loader import load
from lorry.model.layout import layout_of
from lorry.settings import Settings
from lorry_adapters.lora.base import ModuleKind
from support.families import FAMILIES, REQUIRED
from support.tiny import build_model, save_model


@pytest.mark.parametrize("name", REQUIRED)
def test_every_module_that_can_carry_a_delta_is_listed_with_its_shape(name: str) -> None:
    model = build_model(name)
    layout = layout_of(model, "base")
    assert layout.name == "base"
    assert layout.architecture == type(model).__name__
    assert layout.num_layers == 2
    for path, module in model.named_modules():
        entry = layout.modules.get(path)
        if isinstance(module, nn.Linear):
            assert entry is not None and entry.kind is ModuleKind.LINEAR
            assert (entry.out_features, entry.in_features) == tuple(module.weight.shape)
        elif isinstance(module, Conv1D):
            assert entry is not None and entry.kind is ModuleKind.CONV1D
            assert (entry.in_features, entry.out_features) == tuple(module.weight.shape)
        elif isinstance(module, nn.Embedding):
            assert entry is not None and entry.kind is ModuleKind.EMBEDDING
        elif list(module.parameters(recurse=False)):
            assert entry is not None and entry.kind is ModuleKind.OTHER
        else:
            assert entry is None
    for entry in layout.modules.values():
        assert entry.name in dict(model.named_modules())
    suffixes = {path.rpartition(".")[2] for path in layout.modules}
    assert {part.rpartition(".")[2] for part in FAMILIES[name].projections} <= suffixes


@pytest.mark.parametrize("name", REQUIRED)
def test_the_output_head_is_found(name: str) -> None:
    model = build_model(name)
    head = layout_of(model, "base").output_embedding
    assert head is not None and "." not in head
    assert model.get_submodule(head) is model.get_output_embeddings()


@pytest.mark.parametrize("name", (*REQUIRED, "mixtral"))
def test_it_has_the_number_of_weights(name: str) -> None:
    model = build_model(name)
    assert layout_of(model, "base").weights() == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("name", REQUIRED)
def test_quantizing_does_not_change_the_layout(name: str, quantize: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    plain = layout_of(build_model(name), name)
    loaded = load(
        Settings(model=str(folder), home=tmp_path, quantize=quantize, device="cpu"), lambda _: None
    )
    assert loaded.layout == replace(plain, exact=False)
    quantized = [
        path
        for path, module in loaded.model.named_modules()
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt", "Int8Linear")
    ]
    kinds = (ModuleKind.LINEAR, ModuleKind.CONV1D)
    carriers = {path for path, entry in plain.modules.items() if entry.kind in kinds}
    assert carriers - set(quantized) <= {plain.output_embedding}
    with torch.inference_mode():
        for path in quantized:
            entry = plain.modules[path]
            x_TI = torch.zeros(2, entry.in_features)
            assert loaded.model.get_submodule(path)(x_TI).shape == (2, entry.out_features)
