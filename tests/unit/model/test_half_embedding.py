"""A table in the 16 bits of its file answers as the same numbers in fp32 do, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lorry.model.compiled.compiled_linear import CompiledLinear
from lorry.model.half_embedding import HalfEmbedding
from lorry.model.memory import memory_by_part
from support import peft_made
from support.compiled import require_compiled_step
from support.executor_driver import Ask, ExecutorDriver, load_tiny
from support.peft_kinds import KINDS
from support.prompts import random_prompt
from support.tiny import save_model
from support.tokenizer import VOCAB_SIZE

KINDS_OF_TABLE = (
    "modules_to_save=embeddings",
    "trainable_token_indices",
    "dora, embeddings target",
)

_FILE = "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    require_compiled_step()


def twice(family: str, dtype: torch.dtype, root: Path) -> tuple[Path, Path]:
    """The same rounded numbers in files of that dtype, and in fp32."""
    half, whole = root / "half", root / "whole"
    for folder in (half, whole):
        save_model(family, folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(half / _FILE).items()}
    save_file(tensors, half / _FILE, metadata={"format": "pt"})
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(wide, whole / _FILE, metadata={"format": "pt"})
    return half, whole


@pytest.mark.parametrize(
    ("dtype", "kernels", "quantization"),
    [
        (torch.bfloat16, "compiled", "nf4"),
        (torch.float16, "compiled", "int8"),
        (torch.bfloat16, "torch", "nf4"),
        (torch.float16, "torch", "int8"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma3", "gpt2"])
def test_the_same_bits_as_in_fp32(
    dtype: torch.dtype, family: str, kernels: str, quantization: str, tmp_path: Path
) -> None:
    asks = [Ask((), random_prompt(9 + i, seed=i)) for i in range(3)]
    answers = []
    for folder in twice(family, dtype, tmp_path):
        driver = ExecutorDriver(folder, quantization=quantization, kernels=kernels)
        table = driver.loaded.model.get_input_embeddings()
        head = driver.loaded.model.get_output_embeddings()
        # Without the compiled product, a head in fp32 reads a table that is tied to it.
        halved = folder.name == "half" and head.weight is not table.weight
        assert isinstance(table, HalfEmbedding) == halved
        assert table.weight.dtype is (dtype if halved else torch.float32)
        answers.append(driver.score(asks))
        driver.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_adapters_of_the_table_have_the_same_bits_too(family: str, tmp_path: Path) -> None:
    half, whole = twice(family, torch.bfloat16, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(whole)
    made = [
        peft_made.make(KINDS[name], family, model, tmp_path / str(i)).folder
        for i, name in enumerate(KINDS_OF_TABLE)
    ]
    asks = [Ask([(one, 0.5)], random_prompt(9, seed=i)) for i, one in enumerate(made)]
    asks.append(Ask((), random_prompt(9, seed=7)))
    answers = []
    for folder in (half, whole):
        driver = ExecutorDriver(folder, quantization="int8", kernels="compiled")
        answers.append(driver.score(asks))
        driver.close()
    assert answers[0] == answers[1]


def test_a_head_in_fp32_keeps_its_table(tmp_path: Path) -> None:
    half, _ = twice("llama_tied", torch.bfloat16, tmp_path)
    assert type(load_tiny(half, quantization="nf4").model.get_input_embeddings()) is nn.Embedding


def test_no_copy_in_fp32_stays(tmp_path: Path) -> None:
    half, _ = twice("llama_tied", torch.bfloat16, tmp_path)
    loaded = load_tiny(half, quantization="nf4", kernels="auto")
    width = loaded.config.hidden_size
    assert memory_by_part(loaded.model)["embeddings"] == 2 * VOCAB_SIZE * width
    large = [p for p in loaded.model.parameters() if p.numel() >= VOCAB_SIZE * width]
    assert [p.dtype for p in large] == [torch.bfloat16]
    head = loaded.model.get_output_embeddings()
    assert isinstance(head, CompiledLinear) and head.weight.numel() == 0


def test_an_embedding_that_does_something_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = nn.Embedding.forward
    monkeypatch.setattr(nn.Embedding, "forward", lambda self, ids: forward(self, ids) + 1)
    half, _ = twice("llama", torch.bfloat16, tmp_path)
    table = load_tiny(half, quantization="int8").model.get_input_embeddings()
    assert type(table) is nn.Embedding and table.weight.dtype is torch.float32


def test_tables_of_unquantized_bases_stay(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    half, _ = twice("llama", torch.bfloat16, tmp_path)
    assert load_tiny(half).model.get_input_embeddings().weight.dtype is torch.float32
