"""What a loaded base must not hold on to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from lorry.model import memory
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
