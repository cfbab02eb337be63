"""The first Qwen, of 2023, as a Qwen2 model.

Its code lies in its own repository and is never run here. What that code computes is what
Qwen2's does, with other names and with queries, keys and values in one projection (Qwen
Technical Report, arXiv:2309.16609, section 2.2): so the config is translated, and the weights
are renamed and cut while they are read. Two things have no counterpart, a base frequency
that grows with the length and queries scaled by its logarithm; both begin beyond the trained
length, and the model's length ends there.

An adapter names the modules that it was trained on; `aliases` says where they are now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from torch import Tensor
from transformers import Qwen2Config

from lorry.errors import ModelError, UnsupportedModel
from lorry_adapters.lora.base import AliasPart

MODEL_TYPE: Final = "qwen"
CHAT_END: Final = "<|im_end|>"

_LAYER: Final = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj",
    # The activation is on w2: `w1(x) * silu(w2(x))`.
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_THIRDS: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUTSIDE: Final = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
}
_COMPUTED: Final = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias", ".attn.logn_tensor")
"""Buffers that some checkpoints hold, and that follow from the config."""

_MUST_BE: Final = {
    "no_bias": True,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}
_WHOLE: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "kv_channels",
    "seq_length",
)


def config_of(folder: Path, given: str) -> Qwen2Config | None:
    """What `config.json` says, for Qwen2; None where it is of another type.

    Raises:
        ModelError: a number is missing or makes no sense.
        UnsupportedModel: Qwen2 cannot compute it, or the tokenizer is only there as code.
    """
    fields = _json(folder / "config.json")
    if fields.get("model_type") != MODEL_TYPE:
        return None
    wrong = [
        f"{key} is {fields.get(key)!r}"
        for key in _WHOLE
        if type(fields.get(key)) is not int or fields[key] < 1
    ]
    if wrong:
        raise ModelError(f"the config of {given}: {', '.join(wrong)}; must be a positive number")
    problems = [
        f"{key} is {fields[key]!r}, not {value!r}"
        for key, value in _MUST_BE.items()
        if fields.get(key, value) != value
    ]
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    if heads * fields["kv_channels"] != hidden:
        problems.append(f"{heads} heads of {fields['kv_channels']} are not {hidden} wide")
    if not (folder / "tokenizer.json").is_file():
        problems.append(
            "it has no tokenizer.json, and its own tokenizer needs code from its repository: "
            'make one from qwen.tiktoken, as docs/bases.md says ("The first Qwen")'
        )
    if problems:
        raise UnsupportedModel(f"{given} (the first Qwen) is not served: {'; '.join(problems)}")
    special = {key: fields[key] for key in ("bos_token_id", "eos_token_id") if key in fields}
    quantized = fields.get("quantization_config")
    if quantized is not None:
        special["quantization_config"] = quantized
    return Qwen2Config(
        vocab_size=fields["vocab_size"],
        hidden_size=hidden,
        # The config counts both halves of the gated unit.
        intermediate_size=fields["intermediate_size"] // 2,
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=fields["seq_length"],
        rms_norm_eps=fields.get("layer_norm_epsilon", 1e-6),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(fields.get("rotary_emb_base", 10000)),
        },
        tie_word_embeddings=False,
        **special,
    )


def is_original(folder: Path) -> bool:
    return bool(_json(folder / "config.json").get("model_type") == MODEL_TYPE)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors under Qwen2's names; parts of one tensor share its memory.

    Raises:
        ModelError: a tensor that the first Qwen has not.
        OSError, SafetensorError: a file cannot be read.
    """
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in _tensors(folder):
        path, _, kind = key.rpartition(".")
        names = _own(path)
        if key.endswith(_COMPUTED):
            continue
        if not names or kind not in ("weight", "bias"):
            unknown.append(key)
            continue
        rows = tensor.shape[0] // len(names)
        for index, name in enumerate(names):
            found[f"{name}.{kind}"] = tensor[index * rows : (index + 1) * rows]
    if unknown:
        raise ModelError(f"{folder}: {len(unknown)} tensors are not the first Qwen's: {unknown[0]}")
    return found


def chat_end(folder: Path) -> str | None:
    """The token that ends an answer of the chat models, which only their code knows of."""
    file = folder / "generation_config.json"
    chat = file.is_file() and _json(file).get("chat_format") == "chatml"
    return CHAT_END if chat else None


def aliases(config: Qwen2Config) -> dict[str, tuple[AliasPart, ...]]:
    """By the path of a module of the first Qwen: who computes which of its outputs now."""
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    found: dict[str, tuple[AliasPart, ...]] = {
        "transformer.wte": (AliasPart("model.embed_tokens", 0, vocabulary),),
        "transformer.ln_f": (AliasPart("model.norm", 0, hidden),),
    }
    for layer in range(config.num_hidden_layers):
        for theirs in ("attn.c_attn", *_LAYER):
            path = f"transformer.h.{layer}.{theirs}"
            width = inner if theirs in ("mlp.w1", "mlp.w2") else hidden
            found[path] = tuple(
                AliasPart(name, index * width, (index + 1) * width)
                for index, name in enumerate(_own(path))
            )
    return found


def _own(path: str) -> tuple[str, ...]:
    """Qwen2's modules in place of that one, in the order of its outputs; none: no such."""
    if path in _OUTSIDE:
        return (_OUTSIDE[path],)
    start, _, rest = path.removeprefix("transformer.h.").partition(".")
    if not path.startswith("transformer.h.") or not start.isdecimal():
        return ()
    inside = _THIRDS if rest == "attn.c_attn" else (_LAYER[rest],) if rest in _LAYER else ()
    return tuple(f"model.layers.{start}.{name}" for name in inside)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = {str(name) for name in _json(index).get("weight_map", {}).values()}
    for name in sorted(files):
        if Path(name).name != name:
            raise ModelError(f"{index}: {name!r} is no file of this folder")
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, it is no mapping
                yield key, file.get_tensor(key)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is no JSON object")
    return content
