"""PEFT's own model around a tiny base: what the tools' results are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

Loaded = Callable[..., PeftModel]


@pytest.fixture
def load_peft(tiny_model) -> Loaded:
    """`load_peft("llama", a, b)`: adapters `a0`, `a1`, ... on the tiny base, no key left over."""

    def load(family: str, *folders: Path) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
        first, *rest = folders
        model = PeftModel.from_pretrained(base, first, adapter_name="a0")
        for index, folder in enumerate(rest, 1):
            model.load_adapter(folder, adapter_name=f"a{index}")
        for index, folder in enumerate(folders):
            result = model.load_adapter(folder, adapter_name=f"again{index}")
            assert not result.unexpected_keys
            assert not [key for key in result.missing_keys if "lora_" in key]
            model.delete_adapter(f"again{index}")
        model.set_adapter("a0")
        return model.eval()

    return load


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of an adapter's folder, to be spoilt."""
    count = iter(range(1000))

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy{next(count)}"))

    return copy
