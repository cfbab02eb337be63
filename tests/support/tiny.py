"""Tiny random models of every family that must be served, in folders the real loader reads.

Two layers, hidden size 64 (a multiple of bitsandbytes' block), float32. Every
parameter is drawn here from one seed rather than by transformers' own
initialisation: the numbers do not change with its version, biases and norm
weights are not zero and one (a forgotten bias shows), and the logits are far
from flat, so that a greedy choice is never decided by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from support.tokenizer import BOS, EOS, PAD, VOCAB_SIZE, build_tokenizer

HIDDEN = 64
LAYERS = 2
MAX_POSITIONS = 512
SLIDING_WINDOW = 8


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, and the names an adapter's config uses for its parts."""

    name: str
    config: Callable[[], PretrainedConfig]
    attention: tuple[str, ...]
    """Last path components of the attention's projections."""
    mlp: tuple[str, ...]
    head: str = "lm_head"
    layers_pattern: str = "layers"
    add_bos: bool = False
    conv1d: bool = False
    """Its projections are transposed: PEFT wants `fan_in_fan_out`."""
    embedding: str = "embed_tokens"
    norm: str = "input_layernorm"
    """The norm at the start of every layer."""
    experts: tuple[str, ...] = ()
    """Last path components of the experts' parameters, where there are experts."""

    @property
    def projections(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.attention + self.mlp))


_SPLIT_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = ("gate_proj", "up_proj", "down_proj")
_FUSED_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def _config(kind: str, **own: Any) -> Callable[[], PretrainedConfig]:
    """A config in the vocabulary that most families share; `own` adds and, with None, drops."""

    def make() -> PretrainedConfig:
        fields: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_POSITIONS,
            "tie_word_embeddings": False,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }
        fields.update(own)
        dropped = [key for key, value in own.items() if value is None]
        for key in dropped:
            del fields[key]
        return getattr(transformers, kind)(**fields)  # type: ignore[no-any-return]

    return make


_HEAD_DIM = {"head_dim": 16}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("llama", _config("LlamaConfig"), _SPLIT_ATTENTION, _GATED_MLP, add_bos=True),
        Family(
            "mistral",
            _config("MistralConfig", sliding_window=SLIDING_WINDOW, **_HEAD_DIM),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family("qwen2", _config("Qwen2Config"), _SPLIT_ATTENTION, _GATED_MLP),
        Family("qwen3", _config("Qwen3Config", head_dim=32), _SPLIT_ATTENTION, _GATED_MLP),
        Family(
            "phi3",
            _config("Phi3Config", sliding_window=SLIDING_WINDOW),
            ("qkv_proj", "o_proj"),
            ("gate_up_proj", "down_proj"),
        ),
        Family(
            "gpt2",
            _config(
                "GPT2Config",
                n_embd=HIDDEN,
                n_layer=LAYERS,
                n_head=4,
                n_positions=MAX_POSITIONS,
                tie_word_embeddings=True,
                hidden_size=None,
                intermediate_size=None,
                num_hidden_layers=None,
                num_attention_heads=None,
                num_key_value_heads=None,
                max_position_embeddings=None,
            ),
            ("c_attn", "attn.c_proj"),
            ("c_fc", "mlp.c_proj"),
            layers_pattern="h",
            conv1d=True,
            embedding="wte",
            norm="ln_1",
        ),
        Family(
            "gpt_neox",
            _config("GPTNeoXConfig", num_key_value_heads=None),
            ("query_key_value", "attention.dense"),
            ("dense_h_to_4h", "dense_4h_to_h"),
            embedding="embed_in",
        ),
        Family(
            "opt",
            _config(
                "OPTConfig",
                ffn_dim=2 * HIDDEN,
                word_embed_proj_dim=HIDDEN,
                intermediate_size=None,
                num_key_value_heads=None,
            ),
            ("q_proj", "k_proj", "v_proj", "out_proj"),
            ("fc1", "fc2"),
            add_bos=True,
            norm="self_attn_layer_norm",
        ),
        Family(
            "phi",
            _config("PhiConfig", partial_rotary_factor=0.5),
            ("q_proj", "k_proj", "v_proj", "self_attn.dense"),
            ("fc1", "fc2"),
        ),
        Family(
            "gemma",
            _config("GemmaConfig", **_HEAD_DIM),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family(
            "gemma2",
            _config(
                "Gemma2Config",
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=SLIDING_WINDOW,
                attn_logit_softcapping=5.0,
                final_logit_softcapping=8.0,
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family(
            "gemma3",
            _config(
                "Gemma3TextConfig",
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=SLIDING_WINDOW,
                layer_types=["sliding_attention", "full_attention"],
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family(
            "granite",
            _config(
                "GraniteConfig",
                embedding_multiplier=2.0,
                logits_scaling=1.5,
                residual_multiplier=0.7,
                attention_multiplier=0.2,
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "stablelm",
            _config("StableLmConfig", partial_rotary_factor=0.25, use_qkv_bias=True),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "smollm3",
            _config("SmolLM3Config", no_rope_layers=[1, 0]),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "llama_tied",
            _config("LlamaConfig", tie_word_embeddings=True),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "mixtral",
            _config("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
            _SPLIT_ATTENTION,
            (),
            experts=_FUSED_EXPERTS,
        ),
        Family(
            "qwen2_moe",
            _config(
                "Qwen2MoeConfig",
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=HIDDEN // 2,
                shared_expert_intermediate_size=HIDDEN,
            ),
            _SPLIT_ATTENTION,
            tuple(f"shared_expert.{name}" for name in _GATED_MLP),
            experts=_FUSED_EXPERTS,
        ),
        Family(
            "qwen3_moe",
            _config(
                "Qwen3MoeConfig",
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=HIDDEN // 2,
                head_dim=32,
            ),
            _SPLIT_ATTENTION,
            (),
            experts=_FUSED_EXPERTS,
        ),
    )
}
"""Served by packing every sequence in one row."""

REQUIRED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "gemma2")
EXTRA = ("gemma3", "granite", "stablelm", "smollm3")
MORE = ("phi", "gemma", "llama_tied", "mixtral", "qwen2_moe", "qwen3_moe")
"""Asked of by the matrix of kinds only: they run on what the others above have tested."""

_NO_GQA: dict[str, Any] = {"num_key_value_heads": None}
UNPACKABLE: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "falcon",
            _config(
                "FalconConfig", intermediate_size=None, new_decoder_architecture=False, **_NO_GQA
            ),
            ("query_key_value", "self_attention.dense"),
            ("dense_h_to_4h", "dense_4h_to_h"),
            layers_pattern="h",
            embedding="word_embeddings",
        ),
        Family(
            "gptj",
            _config(
                "GPTJConfig",
                n_embd=HIDDEN,
                n_layer=LAYERS,
                n_head=4,
                n_positions=MAX_POSITIONS,
                rotary_dim=8,
                hidden_size=None,
                intermediate_size=None,
                num_hidden_layers=None,
                num_attention_heads=None,
                max_position_embeddings=None,
                **_NO_GQA,
            ),
            ("q_proj", "k_proj", "v_proj", "out_proj"),
            ("fc_in", "fc_out"),
            layers_pattern="h",
            embedding="wte",
            norm="ln_1",
        ),
        Family(
            "bloom",
            _config(
                "BloomConfig",
                n_layer=LAYERS,
                n_head=4,
                intermediate_size=None,
                num_hidden_layers=None,
                num_attention_heads=None,
                max_position_embeddings=None,
                **_NO_GQA,
            ),
            ("query_key_value", "self_attention.dense"),
            ("dense_h_to_4h", "dense_4h_to_h"),
            layers_pattern="h",
            embedding="word_embeddings",
        ),
    )
}
"""Their modeling code ignores a registered attention function, or cannot name one."""

_FALCON_PARTS: dict[str, Any] = {
    "attention": ("query_key_value", "self_attention.dense"),
    "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
    "layers_pattern": "h",
    "embedding": "word_embeddings",
}
_NO_NAMES: dict[str, Any] = {
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "max_position_embeddings": None,
    **_NO_GQA,
}
PADDED_TOO: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "falcon_rw",
            _config(
                "FalconConfig",
                alibi=True,
                multi_query=False,
                parallel_attn=False,
                bias=True,
                new_decoder_architecture=False,
                intermediate_size=None,
                **_NO_GQA,
            ),
            **_FALCON_PARTS,
        ),
        Family(
            "falcon_40b",
            _config(
                "FalconConfig",
                new_decoder_architecture=True,
                num_kv_heads=2,
                intermediate_size=None,
                **_NO_GQA,
            ),
            **_FALCON_PARTS,
        ),
        Family(
            "codegen",
            _config(
                "CodeGenConfig",
                n_embd=HIDDEN,
                n_layer=LAYERS,
                n_head=4,
                n_positions=MAX_POSITIONS,
                rotary_dim=8,
                **_NO_NAMES,
            ),
            ("qkv_proj", "out_proj"),
            ("fc_in", "fc_out"),
            layers_pattern="h",
            embedding="wte",
            norm="ln_1",
        ),
        Family(
            "mpt",
            _config("MptConfig", d_model=HIDDEN, n_layers=LAYERS, n_heads=4, **_NO_NAMES),
            ("Wqkv", "attn.out_proj"),
            ("up_proj", "down_proj"),
            layers_pattern="blocks",
            embedding="wte",
            norm="norm_1",
        ),
        Family(
            "gpt_neo",
            _config(
                "GPTNeoConfig",
                num_layers=LAYERS,
                num_heads=4,
                attention_types=[[["global", "local"], 1]],
                window_size=SLIDING_WINDOW,
                intermediate_size=None,
                num_hidden_layers=None,
                num_attention_heads=None,
                **_NO_GQA,
            ),
            ("q_proj", "k_proj", "v_proj", "out_proj"),
            ("c_fc", "mlp.c_proj"),
            layers_pattern="h",
            embedding="wte",
            norm="ln_1",
        ),
    )
}
"""More forms of the same, and more of the kind."""


def family(name: str) -> Family:
    found = FAMILIES.get(name) or UNPACKABLE.get(name) or PADDED_TOO.get(name)
    assert found is not None, name
    return found


def build_model(name: str, *, seed: int = 0) -> PreTrainedModel:
    """The random model itself, float32, in evaluation mode."""
    config = family(name).config()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, seed=seed)
    return model.eval()


def save_model(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes config, safetensors and tokenizer of the family's model into `folder`."""
    build_model(name, seed=seed).save_pretrained(folder)
    build_tokenizer(add_bos=family(name).add_bos).save_pretrained(folder)
    return folder


@torch.no_grad()
def fill(model: nn.Module, *, seed: int) -> None:
    """Draws every parameter anew: matrices at gain 1.6, the head at 3, embeddings at 1
    (where the head is tied to them at 0.5), vectors near what they were."""
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
