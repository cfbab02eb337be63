"""A tiny Gemma 3 with a vision part, and its text model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from support import tiny
from support.tokenizer import BOS, EOS, PAD, build_tokenizer


def build() -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=tiny.family("gemma3").config().to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=5,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = Gemma3ForConditionalGeneration(config)
    tiny.fill(model, seed=0)
    return model.eval()


def text_of(whole: Any) -> Gemma3ForCausalLM:
    text = Gemma3ForCausalLM(whole.config.text_config).float().eval()
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    return text


def save(model: Any, folder: Path) -> Path:
    model.to(torch.float32).save_pretrained(folder)
    build_tokenizer(add_bos=True).save_pretrained(folder)
    return folder
