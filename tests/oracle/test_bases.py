"""Every base that the README names: loaded, checked as at start-up, and equal to PEFT.

A plain LoRA alone, and a mixed batch in chunks. The families that `test_logprobs` and
`test_padded` ask much more about are here too, so that this file is the whole list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from lorry.model import selfcheck
from lorry_adapters.lora import weights
from support import families, padded_families, tiny
from support.peft_adapters import fill
from support.peft_oracle import PeftOracle
from support.prompts import random_prompt
from support.runner_driver import Ask, RunnerDriver
from support.tokenizer import BOS, EOS, PAD, build_tokenizer

TOLERANCE = 1e-4
PADDED = {*padded_families.UNPACKABLE, *padded_families.PADDED_TOO}
BASES = [*families.FAMILIES, *PADDED - {"codegen", "mpt", "gpt_neo"}]


def check(folder: Path, plain: Path, other: Path) -> RunnerDriver:
    ours, theirs = RunnerDriver(folder), PeftOracle(folder)
    selfcheck.check(ours.runner, ours.loaded)
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
    assert (ours.runner.row_layout == "padded") is (family in PADDED)


def test_gemma_3_with_a_vision_part_serves_its_text_part(tmp_path: Path) -> None:
    """PEFT's `q_proj` finds modules of the vision part, which no text reaches."""
    text = tiny.family("gemma3").config()
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=5,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = Gemma3ForConditionalGeneration(config)
    tiny.fill(model, seed=0)
    base = tmp_path / "base"
    model.save_pretrained(base)
    build_tokenizer(add_bos=True).save_pretrained(base)
    for seed in (0, 1):
        wrapped = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "down_proj"]),
        )
        fill(wrapped, seed=seed)
        wrapped.save_pretrained(tmp_path / f"adapter-{seed}")
    ours = check(base, tmp_path / "adapter-0", tmp_path / "adapter-1")
    assert ours.loaded.layout.architecture == "Gemma3ForConditionalGeneration"
    loaded = weights.load(tmp_path / "adapter-0", "sha256:0", ours.loaded.layout)
    assert any("vision_tower" in path for path in loaded.modules)
