"""Tiny models of several families as GGUF files, with random blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers import modeling_gguf_pytorch_utils as names

from support.gguf_model import write_tokenizer
from support.tokenizer import BOS, EOS, PAD, VOCAB_SIZE

Kind = gguf.GGMLQuantizationType

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}

_BLOOM = {"n_layer": 2, "n_head": 4, "hidden_size": 256, "vocab_size": VOCAB_SIZE}

_GPT2 = {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB_SIZE}

# The width of experts is not read from the file: it is transformers' default.
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SIZES, "tie_word_embeddings": False}),
    "tied llama": ("LlamaConfig", {**_SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", _SIZES),
    "qwen3": ("Qwen3Config", {**_SIZES, "head_dim": 128}),
    "gemma2": ("Gemma2Config", {**_SIZES, "head_dim": 64}),
    "phi3": ("Phi3Config", _SIZES),
    "starcoder2": ("Starcoder2Config", _SIZES),
    "stablelm": ("StableLmConfig", _SIZES),
    "nemotron": ("NemotronConfig", _SIZES),
    "bloom": (
        "BloomConfig",
        {"n_layer": 2, "n_head": 4, "hidden_size": 256, "vocab_size": VOCAB_SIZE},
    ),
    "falcon": ("FalconConfig", {**_SIZES, "new_decoder_architecture": False, "multi_query": True}),
    "gpt2": ("GPT2Config", _GPT2),
    "qwen3_moe": ("Qwen3MoeConfig", {**_SIZES, **_EXPERTS, "head_dim": 128}),
}

_ARCHITECTURES = {"qwen3_moe": "qwen3moe"}


def write_family(path: Path, family: str, kind: Kind, **other: int) -> None:
    """Write linears and tables in blocks of `kind`, all else in fp32. `other`: sizes that are not
    those of `FAMILIES`."""
    name, fields = FAMILIES[family]
    config = getattr(transformers, name)(**{**fields, **other})
    architecture = _ARCHITECTURES.get(config.model_type, config.model_type)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, architecture, config)
    write_tokenizer(writer)
    for tensor, shape in _tensors(architecture, config).items():
        if len(shape) < 2 or shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(tensor, random.standard_normal(shape, dtype=np.float32) / 8)
        else:
            writer.add_tensor(tensor, _blocks(random, shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: gguf.GGUFWriter, architecture: str, config: PretrainedConfig) -> None:
    for key, ours in names.GGUF_TO_TRANSFORMERS_MAPPING["config"][config.model_type].items():
        value = getattr(config, ours, None) if isinstance(ours, str) else None
        full = f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)


def _tensors(architecture: str, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kind = names.TENSOR_PROCESSORS.get(architecture, names.TensorProcessor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = config.tie_word_embeddings
    found = {}
    for theirs, ours in names.get_gguf_hf_weights_map(model, kind()).items():
        shape = shapes[ours]
        if theirs == "output.weight" and tied:
            continue
        if theirs.endswith(("ffn_gate_exps", "ffn_up_exps")):
            shape = (shape[0], shape[1] // 2, shape[2])
        if architecture == "gpt2" and "blk" in theirs and len(shape) == 2:
            shape = shape[::-1]
        found[theirs if "exps" not in theirs else f"{theirs}.weight"] = shape
    return found


def _blocks(random: np.random.Generator, shape: tuple[int, ...], kind: Kind) -> NDArray[np.uint8]:
    if kind is not Kind.Q4_K:
        return np.asarray(
            gguf.quants.quantize(random.standard_normal(shape, dtype=np.float32) / 8, kind)
        )
    # The library does not quantize to these: two scales in half precision, then integers.
    count, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // count, size), dtype=np.uint8)
    scales = random.uniform(1e-4, 1e-3, (*blocks.shape[:-1], 2)).astype(np.float16)
    blocks[..., :4] = scales.view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
