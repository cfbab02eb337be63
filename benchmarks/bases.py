"""Bases of real shapes with random weights, for measurements of speed and memory.

    .venv/bin/python -m benchmarks.bases llama-1b /tmp/llama-1b
    lorry bench --model /tmp/llama-1b -a 8 -- --quantize nf4

The shapes are those of published models. The weights are random bfloat16 numbers, the tokenizer is
the default base's. Answers mean nothing, and a step takes as long as one of the real model.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from lorry.model import known_bases
from lorry.settings import DEFAULT_MODEL

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def _llama(*, hidden: int, layers: int, heads: int, size: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=size,
        vocab_size=128_256,
        tie_word_embeddings=True,
        **TOKENS,
    )


SHAPES: Mapping[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**TOKENS),
    "qwen3-0.6b": lambda: Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        tie_word_embeddings=True,
        **TOKENS,
    ),
    "llama-1b": lambda: _llama(hidden=2048, layers=16, heads=32, size=64),
    "gemma2-2b": lambda: Gemma2Config(**TOKENS),
    "llama-3b": lambda: _llama(hidden=3072, layers=28, heads=24, size=128),
    "phi3-mini": lambda: Phi3Config(**TOKENS),
    "olmoe-7b": lambda: OlmoeConfig(intermediate_size=1024, **TOKENS),
    "qwen3-30b-a3b": lambda: Qwen3MoeConfig(
        hidden_size=2048,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        vocab_size=151_936,
        **TOKENS,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    given = parser.parse_args()
    make(given.shape, given.folder, given.layers)
    return 0


def make(shape: str, folder: Path, layers: int | None = None) -> None:
    config = SHAPES[shape]()
    if layers is not None:
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:layers]
        config.num_hidden_layers = layers
    config.max_position_embeddings = min(config.max_position_embeddings, 8192)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    base = known_bases.find(DEFAULT_MODEL)
    assert base is not None
    home = platformdirs.user_data_path("lorry", appauthor=False)
    source = known_bases.pull(base, home, print, lambda *_: None)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)


if __name__ == "__main__":
    sys.exit(main())
