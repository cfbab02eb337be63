"""Every base that docs/bases.md names: loaded, checked as at start-up, and equal to PEFT.

A plain LoRA alone, and a mixed batch in chunks. The families that `test_logprobs` and
`test_padded` ask much more about are here too, so that this file is the whole list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lorry_adapters.lora import weights
from support import families, padded_families, wrapped_base
from support.executor_driver import Ask, ExecutorDriver
from support.peft_adapters import fill
from support.peft_oracle import PeftOracle
from support.prompts import random_prompt

TOLERANCE = 1e-4
PADDED = {*padded_families.UNPACKABLE, *padded_families.PADDED_TOO}
BASES = [*families.FAMILIES, *PADDED - {"codegen", "mpt", "gpt_neo"}]


def check(folder: Path, plain: Path, other: Path) -> ExecutorDriver:
    ours, theirs = ExecutorDriver(folder, is_checked=True), PeftOracle(folder)
    mixed = [[], [(plain, 1.0)], [(plain, 0.5)], [(plain, 1.0), (other, -0.5)]]
    for uses in ([mixed[1]], mixed):
        asks = [Ask(one, random_prompt(21 + row, row)) for row, one in enumerate(uses)]
        for ask, mine in zip(asks, ours.score(asks, chunk=16), strict=True):
            assert mine == pytest.approx(theirs.prompt_logprobs(*ask.both), abs=TOLERANCE)
    return ours


@pytest.mark.parametrize("family", sorted(BASES))
def test_a_base(
    family: str, tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    plain = peft_adapter(family, "plain")
    other = peft_adapter(family, "attention_only", seed=1)
    ours = check(tiny_model(family), plain, other)
    assert (ours.executor.paths.row_layout == "padded") is (family in PADDED)


def test_gemma_3_with_a_vision_part_serves_its_text_part(tmp_path: Path) -> None:
    """PEFT's `q_proj` finds modules of the vision part, which no text reaches or trains."""
    base = wrapped_base.save(wrapped_base.build(), tmp_path / "base")
    for seed in (0, 1):
        wrapped = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "down_proj"]),
        )
        fill(wrapped, seed=seed)
        for path, parameter in wrapped.named_parameters():
            if "vision_tower" in path and "lora_B" in path:
                parameter.data.zero_()
        wrapped.save_pretrained(tmp_path / f"adapter-{seed}")
    ours = check(base, tmp_path / "adapter-0", tmp_path / "adapter-1")
    layout = ours.loaded.layout
    assert layout.architecture == "Gemma3ForConditionalGeneration"
    (warning,) = weights.inspect(tmp_path / "adapter-0", layout, 64).warnings
    assert "model.vision_tower.encoder.layers.0.self_attn.q_proj" in warning
    loaded = weights.load(tmp_path / "adapter-0", "sha256:0", layout)
    assert not any("vision_tower" in path for path in loaded.modules)
