"""Adapters with virtual tokens: what is read out of their files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.prompt import KeyValuePrefix, PromptEmbeddings
from lorry_adapters.lora.weights import AdapterWeights, inspect, load
from support.families import HIDDEN, LAYERS
from support.peft_adapters import edit_config, save_adapter

COUNT = 3
KV_HEADS, HEAD_SIZE = 2, 16
"""Of the tiny Llama."""
WIDTH = LAYERS * 2 * KV_HEADS * HEAD_SIZE

Layout = Callable[[str], BaseLayout]


def save(folder: Path, peft_type: str, tensors: dict[str, Any], **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "num_virtual_tokens": COUNT,
        "num_transformer_submodules": 1,
        **fields,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def prompt(width: int = HIDDEN, count: int = COUNT, **more: Any) -> dict[str, Any]:
    return {"prompt_embeddings": torch.randn(count, width), **more}


def problems(folder: Path, layout: BaseLayout) -> str:
    with pytest.raises(InvalidAdapter) as refused:
        inspect(folder, layout, 8)
    return "\n".join(refused.value.problems)


def both_ways(folder: Path, layout: BaseLayout) -> AdapterWeights:
    """Its weights, after its facts were seen to agree with them."""
    facts = inspect(folder, layout, 8)
    weights = load(folder, "sha256:x", layout)
    assert weights.prompt is not None
    assert facts.virtual_tokens == weights.prompt.count == COUNT
    assert (facts.rank, facts.target_modules, facts.scalable) == (0, (), False)
    assert not weights.modules
    assert not weights.effects
    assert weights.bytes == weights.prompt.nbytes > 0
    return weights


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "CPT"])
def test_embeddings_are_read_as_they_are(peft_type: str, layout: Layout, tmp_path: Path) -> None:
    tensors = prompt()
    folder = save(
        tmp_path / "p",
        peft_type,
        tensors,
        token_dim=HIDDEN,
        num_layers=LAYERS,
        num_attention_heads=4,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="Be brief.",
        tokenizer_name_or_path="tiny",
        tokenizer_kwargs={"use_fast": True},
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=7,
        inference_mode=True,
    )
    read = both_ways(folder, layout("llama")).prompt
    assert isinstance(read, PromptEmbeddings)
    assert torch.equal(read.rows_NH, tensors["prompt_embeddings"])


def test_one_tasks_prompt_is_multiplied(layout: Layout, tmp_path: Path) -> None:
    columns, rows = torch.randn(1, COUNT, 2), torch.randn(1, 2, HIDDEN)
    tensors = prompt(prefix_task_cols=columns, prefix_task_rows=rows)
    folder = save(tmp_path / "p", "MULTITASK_PROMPT_TUNING", tensors, num_ranks=2, num_tasks=1)
    read = both_ways(folder, layout("llama")).prompt
    assert isinstance(read, PromptEmbeddings)
    torch.testing.assert_close(read.rows_NH, tensors["prompt_embeddings"] * (columns[0] @ rows[0]))


@pytest.mark.parametrize("peft_type", ["PREFIX_TUNING", "CARTRIDGE"])
def test_a_prefix_is_sorted_by_layer(peft_type: str, layout: Layout, tmp_path: Path) -> None:
    tensors = prompt(WIDTH)
    folder = save(
        tmp_path / "p",
        peft_type,
        tensors,
        num_layers=LAYERS,
        num_attention_heads=KV_HEADS,
        token_dim=KV_HEADS * HEAD_SIZE,
        prefix_projection=True,
        num_frozen_tokens=1,
    )
    read = both_ways(folder, layout("llama")).prompt
    assert isinstance(read, KeyValuePrefix)
    assert read.cells_L2NKD.shape == (LAYERS, 2, COUNT, KV_HEADS, HEAD_SIZE)
    flat_NX = tensors["prompt_embeddings"]
    # PEFT's row of a token: layer 0's keys head by head, layer 0's values, layer 1's keys, ...
    for token in range(COUNT):
        for layer in range(LAYERS):
            for which in (0, 1):
                first = (2 * layer + which) * KV_HEADS * HEAD_SIZE
                part = flat_NX[token, first : first + KV_HEADS * HEAD_SIZE]
                assert torch.equal(read.cells_L2NKD[layer, which, token].flatten(), part)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_virtual_tokens": None}, "num_virtual_tokens is null"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0: must be a whole number from 1"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is True"),
        ({"num_virtual_tokens": 4}, r"is [3, 64]; this needs [4, 64]"),
        ({"num_transformer_submodules": 2}, "only decoder-only models"),
        ({"token_dim": 32}, "token_dim is 32; the embeddings of the base tiny-llama are 64 wide"),
        ({"modules_to_save": ["lm_head"]}, "full weights beside the virtual tokens"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type 'SEQ_2_SEQ_LM'"),
        ({"something": 1}, "unknown key 'something'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configs_of_prompts_that_are_refused(
    fields: dict[str, Any], words: str, layout: Layout, tmp_path: Path
) -> None:
    folder = save(tmp_path / "p", "PROMPT_TUNING", prompt(), **fields)
    assert words in problems(folder, layout("llama"))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (prompt(32), "is [3, 32]; this needs [3, 64]"),
        (prompt(count=2), "is [2, 64]; this needs [3, 64]"),
        ({"other": torch.zeros(1)}, "the file has no prompt_embeddings, the virtual tokens"),
        (prompt(more=torch.zeros(1)), "'more': unexpected key; expected prompt_embeddings"),
        ({"prompt_embeddings": torch.ones(3, 64, dtype=torch.int32)}, "is I32"),
        ({"prompt_embeddings": torch.full((3, 64), torch.nan)}, "contains NaN"),
    ],
    ids=["width", "count", "none", "more", "integers", "nan"],
)
def test_files_of_prompts_that_are_refused(
    tensors: dict[str, Any], words: str, layout: Layout, tmp_path: Path
) -> None:
    assert words in problems(save(tmp_path / "p", "PROMPT_TUNING", tensors), layout("llama"))


def test_all_problems_are_told(layout: Layout, tmp_path: Path) -> None:
    folder = save(tmp_path / "p", "P_TUNING", prompt(32, more=torch.zeros(1)), token_dim=32)
    told = problems(folder, layout("llama"))
    for words in ("is [3, 32]", "unexpected key", "token_dim is 32"):
        assert words in told


def test_several_tasks_are_refused(layout: Layout, tmp_path: Path) -> None:
    folder = save(tmp_path / "p", "MULTITASK_PROMPT_TUNING", prompt(), num_tasks=2)
    told = problems(folder, layout("llama"))
    assert "the prompts of 2 tasks in one adapter are not served" in told
    assert "the file has no prefix_task_cols" in told


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_layers": 3}, "num_layers is 3; the keys of the base tiny-llama have 2"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4"),
        ({"token_dim": 64}, "token_dim is 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_prefixes_for_another_base(
    fields: dict[str, Any], words: str, layout: Layout, tmp_path: Path
) -> None:
    folder = save(tmp_path / "p", "PREFIX_TUNING", prompt(WIDTH), **fields)
    assert words in problems(folder, layout("llama"))


def test_prefixes_of_another_size(layout: Layout, tmp_path: Path) -> None:
    # The query heads of the tiny Llama are twice its key heads.
    folder = save(tmp_path / "p", "PREFIX_TUNING", prompt(2 * WIDTH))
    assert "is [3, 256]; this needs [3, 128]" in problems(folder, layout("llama"))


def test_a_base_whose_layers_differ_takes_no_prefix(layout: Layout, tmp_path: Path) -> None:
    folder = save(tmp_path / "p", "PREFIX_TUNING", prompt(WIDTH))
    odd = replace(layout("llama"), kv_heads=0, head_size=0)
    assert "PREFIX_TUNING is not served on the base tiny-llama" in problems(folder, odd)


def test_a_base_without_a_table_takes_no_prompt(layout: Layout, tmp_path: Path) -> None:
    folder = save(tmp_path / "p", "PROMPT_TUNING", prompt())
    odd = replace(layout("llama"), input_embedding=None)
    assert "has no embeddings to put" in problems(folder, odd)


@pytest.mark.parametrize(
    ("family", "shape"),
    [("llama", (2, 16)), ("gpt2", (4, 16)), ("qwen3", (2, 32)), ("falcon", (0, 0))],
)
def test_what_a_base_keeps_a_token(family: str, shape: tuple[int, int], layout: Layout) -> None:
    found = layout(family)
    assert (found.kv_heads, found.head_size) == shape


def test_activated_lora(layout: Layout, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = save_adapter("llama", tiny_model("llama"), "one_module", tmp_path / "a")
    edit_config(folder, alora_invocation_tokens=[7, 8, 9])
    facts = inspect(folder, layout("llama"), 8)
    assert facts.invocation == (7, 8, 9)
    assert facts.scalable
    # On linears alone it is pairs of matrices, and so as fast as any LoRA.
    weights = load(folder, "sha256:x", layout("llama"))
    assert weights.modules
    assert not weights.effects
    assert weights.prompt is None


def test_activated_lora_beside_parts_of_the_base(
    layout: Layout, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT has those act before the call as well."""
    folder = save_adapter("llama", tiny_model("llama"), "one_module", tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"] = torch.randn(384, HIDDEN)
    save_file(tensors, file)
    edit_config(folder, alora_invocation_tokens=[7, 8, 9], modules_to_save=["lm_head"])
    assert "on linear modules only" in problems(folder, layout("llama"))
