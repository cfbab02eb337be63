"""A Llama of any shape with random weights, quantized on the device, and adapters for it.

Nothing is downloaded and nothing is written: what a step costs does not depend on what the
numbers are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorry.model.base_loader import LoadedModel
from lorry.model.layout import layout_of
from lorry.model.memory import memory_by_part
from lorry.model.quantize import Precision, Quantization, settle
from lorry_adapters.lora.base import ModuleKind
from lorry_adapters.lora.weights import AdapterWeights, LoraPair


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    positions: int = 8192


SHAPES = {
    "llama-8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 128256),
    "tiny": Shape(64, 128, 2, 4, 2, 256, 512),
}


def load_random(
    shape: Shape, *, device: torch.device, dtype: torch.dtype, quantize: str, seed: int = 0
) -> LoadedModel:
    """What the loader would give. `quantize`: nf4 (nested, as the server does it) or none."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        rope_theta=500000.0,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    model.eval()
    if quantize == "nf4":
        _quantize(model, dtype)
    kind = Quantization(quantize)
    settle(model, Precision(device, dtype, kind, double_quant=True, int8_threshold=0.0))
    return LoadedModel(
        model=model,
        tokenizer=None,
        config=config,
        name="random",
        other_names=(),
        repository=None,
        layout=layout_of(model, "random"),
        device=device,
        dtype=dtype,
        quantization=quantize,
        eos_token_ids=frozenset(),
        memory=memory_by_part(model),
        max_model_len=shape.positions,
        source="random",
        revision=None,
    )


def _quantize(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """All linears but the head, one at a time: the weights are never there twice."""
    for name, linear in list(projections(model)):
        made = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        device, weight = linear.weight.device, linear.weight.data
        packed = Params4bit(
            weight.cpu() if device.type == "cuda" else weight,
            requires_grad=False,
            compress_statistics=True,
            quant_type="nf4",
            module=made,
        )
        made.weight = packed.to(device)
        made.source_cls = nn.Linear
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made)


def projections(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, linear) of everything but the output head, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            yield name, module


def random_adapter(loaded: LoadedModel, rank: int, seed: int) -> AdapterWeights:
    """Pairs of `rank` on every projection."""
    dice = torch.Generator().manual_seed(seed)
    modules = {}
    for module in loaded.layout.modules.values():
        if module.kind is ModuleKind.LINEAR and module.name != loaded.layout.output_embedding:
            a_RI = torch.randn(rank, module.in_features, generator=dice) * 0.02
            b_OR = torch.randn(module.out_features, rank, generator=dice) * 0.02
            modules[module.name] = LoraPair(a_RI, b_OR, 2.0)
    size = sum(pair.a_RI.nbytes + pair.b_OR.nbytes for pair in modules.values())
    return AdapterWeights(f"sha256:{seed:064x}", modules, size)


def smaller(shape: Shape, layers: int | None) -> Shape:
    """The same with fewer layers, if so many are given."""
    return shape if layers is None else dataclasses.replace(shape, layers=layers)
