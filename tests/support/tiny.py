"""Tiny random models of every family that must be served, in folders the real loader reads.

Float32. Every parameter is drawn here from one seed rather than by transformers' own
initialisation: the numbers do not change with its version, biases and norm
weights are not zero and one (a forgotten bias shows), and the logits are far
from flat, so that a greedy choice is never decided by rounding. How each looks is
`families.py`'s.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from support.described_families import DESCRIBED, MORE_MIXTURES
from support.families import FAMILIES, HIDDEN, Family
from support.padded_families import PADDED_TOO, UNPACKABLE
from support.tokenizer import build_tokenizer


def family(name: str) -> Family:
    tables = (FAMILIES, DESCRIBED, MORE_MIXTURES, UNPACKABLE, PADDED_TOO)
    found = next((table[name] for table in tables if name in table), None)
    assert found is not None, name
    return found


def build_model(name: str, *, seed: int = 0, max_positions: int | None = None) -> PreTrainedModel:
    """The random model itself, float32, in evaluation mode."""
    config = family(name).config()
    if max_positions is not None:
        config.max_position_embeddings = max_positions
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, seed=seed)
    return model.eval()


def save_model(name: str, folder: Path, *, seed: int = 0, max_positions: int | None = None) -> Path:
    """Writes config, safetensors and tokenizer of the family's model into `folder`."""
    build_model(name, seed=seed, max_positions=max_positions).save_pretrained(folder)
    build_tokenizer(add_bos=family(name).add_bos).save_pretrained(folder)
    return folder


def save(config: PretrainedConfig, folder: Path) -> Path:
    """The same of a config that is no family's."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, seed=0)
    model.save_pretrained(folder)
    build_tokenizer(add_bos=False).save_pretrained(folder)
    return folder


@torch.no_grad()
def fill(model: nn.Module, *, seed: int) -> None:
    """Draws every parameter anew: matrices at gain 1.6, the head at 3, embeddings at 1
    (where the head is tied to them at 0.5), vectors near what they were; and what corrects the
    choice of experts."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(0.1 * noise)
        elif id(parameter) in embeddings:
            parameter.copy_(noise * (0.5 if parameter is head else 1.0))
        else:
            gain = 3.0 if parameter is head else 1.6
            parameter.copy_(noise * (gain / math.sqrt(HIDDEN)))
    for name, buffer in sorted(model.named_buffers(), key=lambda item: item[0]):
        if name.endswith("correction_bias"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
