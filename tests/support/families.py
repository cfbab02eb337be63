"""Every family of models that must be served, as a tiny config: a table.

A family says how its transformers config looks at two layers and hidden size 64 (a multiple
of bitsandbytes' block), and the names that an adapter's config uses for its parts. `tiny.py`
builds the models; the families that are served padded are `padded_families.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PretrainedConfig

from support.tokenizer import BOS, EOS, PAD, VOCAB_SIZE

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
FUSED_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def config_of(kind: str, **own: Any) -> Callable[[], PretrainedConfig]:
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
        Family("llama", config_of("LlamaConfig"), _SPLIT_ATTENTION, _GATED_MLP, add_bos=True),
        Family(
            "mistral",
            config_of("MistralConfig", sliding_window=SLIDING_WINDOW, **_HEAD_DIM),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family("qwen2", config_of("Qwen2Config"), _SPLIT_ATTENTION, _GATED_MLP),
        Family("qwen3", config_of("Qwen3Config", head_dim=32), _SPLIT_ATTENTION, _GATED_MLP),
        Family(
            "phi3",
            config_of("Phi3Config", sliding_window=SLIDING_WINDOW),
            ("qkv_proj", "o_proj"),
            ("gate_up_proj", "down_proj"),
        ),
        Family(
            "gpt2",
            config_of(
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
            config_of("GPTNeoXConfig", num_key_value_heads=None),
            ("query_key_value", "attention.dense"),
            ("dense_h_to_4h", "dense_4h_to_h"),
            embedding="embed_in",
        ),
        Family(
            "opt",
            config_of(
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
            config_of("PhiConfig", partial_rotary_factor=0.5),
            ("q_proj", "k_proj", "v_proj", "self_attn.dense"),
            ("fc1", "fc2"),
        ),
        Family(
            "gemma",
            config_of("GemmaConfig", **_HEAD_DIM),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family(
            "gemma2",
            config_of(
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
            config_of(
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
            config_of(
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
            config_of("StableLmConfig", partial_rotary_factor=0.25, use_qkv_bias=True),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "smollm3",
            config_of("SmolLM3Config", no_rope_layers=[1, 0]),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "llama_tied",
            config_of("LlamaConfig", tie_word_embeddings=True),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "mixtral",
            config_of("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
        Family(
            "qwen2_moe",
            config_of(
                "Qwen2MoeConfig",
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=HIDDEN // 2,
                shared_expert_intermediate_size=HIDDEN,
            ),
            _SPLIT_ATTENTION,
            tuple(f"shared_expert.{name}" for name in _GATED_MLP),
            experts=FUSED_EXPERTS,
        ),
        Family(
            "qwen3_moe",
            config_of(
                "Qwen3MoeConfig",
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=HIDDEN // 2,
                head_dim=32,
            ),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
    )
}
"""Served by packing every sequence in one row."""

REQUIRED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "gemma2")
EXTRA = ("gemma3", "granite", "stablelm", "smollm3")
MORE = ("phi", "gemma", "llama_tied", "mixtral", "qwen2_moe", "qwen3_moe")
"""Asked of by the matrix of kinds only: they run on what the others above have tested."""
