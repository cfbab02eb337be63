"""The adapters that the bench makes: PEFT reads them, and they are always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lorry.bench import random_adapters


def test_every_projection_is_there_and_peft_takes_it(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_model("llama")
    shapes = random_adapters.shapes_of(base)
    assert {name.rpartition(".")[2] for name in shapes} == set(random_adapters.PROJECTIONS)
    assert shapes["model.layers.0.mlp.down_proj"] == (64, 128)
    random_adapters.write(tmp_path / "one", shapes, 3, 4, base="tiny")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    adapted = PeftModel.from_pretrained(model, tmp_path / "one")
    loras = [name for name, _ in adapted.named_parameters() if "lora_B" in name]
    assert len(loras) == len(shapes)
    after = adapted(ids).logits
    change = (after - before).norm() / before.norm()
    # Heard, and no more than that: the text stays text.
    assert 0.001 < change < 0.5


def test_fused_projections_count(tiny_model: Callable[[str], Path]) -> None:
    names = {name.rpartition(".")[2] for name in random_adapters.shapes_of(tiny_model("phi3"))}
    assert {"qkv_proj", "gate_up_proj"} <= names


def test_a_base_without_projections_is_refused(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(random_adapters.NoProjections, match="q_proj"):
        random_adapters.shapes_of(tiny_model("gpt2"))


def test_the_same_index_is_the_same_file_and_another_is_another(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shapes = random_adapters.shapes_of(tiny_model("llama"))

    def digest(folder: str, index: int) -> str:
        random_adapters.write(tmp_path / folder, shapes, index, 4, base="tiny")
        return hashlib.sha256(
            (tmp_path / folder / "adapter_model.safetensors").read_bytes()
        ).hexdigest()

    assert digest("one", 0) == digest("two", 0) != digest("three", 1)
