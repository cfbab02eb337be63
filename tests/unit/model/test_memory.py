"""What a loaded base must not hold on to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lorry.model import memory
from lorry.model.compiled import tensor_reader
from support.executor_driver import load_tiny
from support.tokenizer import VOCAB_SIZE

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


@linux
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_base_has_let_go_of_its_files(
    quantization: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    # A copy of its own: another test of this process may have the common one mapped.
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "llama"))
    loaded = load_tiny(folder, quantization=quantization)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert loaded.model.get_input_embeddings().weight.shape[0] == VOCAB_SIZE


@linux
@pytest.mark.parametrize("replaced", [False, True])
def test_a_large_weight_is_read_and_not_copied_out_of_the_mapping(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless another file has come to lie where it was mapped from."""
    monkeypatch.setattr(memory, "_LARGE", 4)
    monkeypatch.setattr(tensor_reader, "_PIECE", 1 << 10)
    weights = {"a": torch.randn(3), "b": torch.randn(900, 3).bfloat16(), "c": torch.randn(5, 7)}
    save_file(weights, tmp_path / "file")
    with safe_open(tmp_path / "file", framework="pt") as file:
        model = nn.ParameterDict({name: nn.Parameter(file.get_tensor(name)) for name in weights})
    if replaced:
        save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "other")
        (tmp_path / "other").rename(tmp_path / "file")
    read = []

    def counted(handle: int, tensor: torch.Tensor, offset: int) -> None:
        read.append(offset)
        tensor_reader.fill(handle, tensor, offset)

    monkeypatch.setattr(memory, "fill", counted)
    memory.let_go_of_files(model)
    assert len(read) == (0 if replaced else 3)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert all(torch.equal(model[name], weight) for name, weight in weights.items())


@linux
def test_what_was_freed_goes_back_to_the_system() -> None:
    """Pieces too small to be mapped each by itself, and one behind them that stays."""
    process = psutil.Process()
    pieces = [torch.zeros(16 << 10) for _ in range(2000)]
    stays = pieces.pop()
    full = process.memory_info().rss
    pieces.clear()
    memory.give_back_freed()
    assert process.memory_info().rss < full - (64 << 20)
    assert stays.sum() == 0
