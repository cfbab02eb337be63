"""How large a tiny decoder's config is: a vocabulary of fields that all classes share, and what
some classes need besides.

A field is set where a config has it; what stands in no table keeps transformers' default. So
a class that transformers adds is made tiny by itself as long as it speaks this vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from support.families import HIDDEN, LAYERS, MAX_POSITIONS
from support.tokenizer import BOS, EOS, PAD, VOCAB_SIZE

Fields = Mapping[str, Any]

LIMIT = 20
"""Of every window, chunk and choice of keys, in tokens."""

ROPE_LIMIT = 48
"""Of rotary frequencies: a server of LongRoPE's ends there, and its self-check is shorter."""

_TOKENS: Fields = {
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "decoder_vocab_size": VOCAB_SIZE,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "sep_token_id": EOS,
    "cls_token_id": BOS,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": None,
}

_WIDTHS: Fields = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "word_embed_proj_dim",
         "embedding_dim", "input_embedding_size", "output_embedding_size", "lru_width",
         "attention_hidden_size", "moe_shared_expert_intermediate_size",
         "shared_expert_intermediate_size", "shared_experts_intermediate_size",
         "shared_intermediate_size", "cross_attention_hidden_size",
         "hidden_size_global", "adapter_in_dim", "adapter_out_dim", "adapter_input_size",
         "downsample_hidden_size", "out_hidden_size"),
        HIDDEN,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim",
         "ffn_hidden_size", "dim_ff", "dff", "d_inner", "feed_forward_size",
         "intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size",
         "mamba_d_ssm"),
        2 * HIDDEN,
    ),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), HIDDEN // 2),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
         "encoder_layers", "num_encoder_layers", "num_decoder_layers", "num_blocks",
         "num_layers_per_stack"),
        LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
         "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
         "attention_heads", "swa_num_attention_heads", "linear_num_value_heads",
         "linear_num_heads"),
        4,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups",
         "linear_num_key_heads", "index_n_heads", "indexer_n_heads", "num_global_key_value_heads",
         "swa_num_key_value_heads"),
        2,
    ),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "dim_head", "d_head", "kv_channels", "attention_head_dim",
         "attention_head_size", "linear_key_head_dim", "linear_value_head_dim",
         "linear_head_dim", "index_head_dim", "indexer_head_dim", "global_head_dim",
         "query_pre_attn_scalar", "v_head_dim", "qk_nope_head_dim", "mamba_d_head",
         "mamba_head_dim", "mamba_headdim"),
        16,
    ),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 24,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    "hidden_size_per_layer_input": 16,
}  # fmt: skip

_EXPERTS: Fields = {
    **dict.fromkeys(
        ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(
        ("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts",
         "moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers",
         "moe_layer_start_index"),
        1,
    ),
}  # fmt: skip

_STATES: Fields = {
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 8),
}

_LIMITS: Fields = {
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
         "model_max_length", "max_target_positions", "max_source_positions"),
        MAX_POSITIONS,
    ),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "attention_chunk_size", "attention_window_size",
         "window_size", "local_attention", "local_attention_window_len", "keep_window_size",
         "index_topk", "indexer_budget", "floor_scale", "local_attn_chunk_length",
         "lsh_attn_chunk_length"),
        LIMIT,
    ),
    "max_window_layers": 1,
    "index_block_size": 4,
    "index_topk_blocks": 2,
}  # fmt: skip

FIELDS: Fields = {
    **_TOKENS,
    **_WIDTHS,
    **_EXPERTS,
    **_STATES,
    **_LIMITS,
    # What answers a prompt reads it from left to right.
    "is_decoder": True,
    "tie_word_embeddings": False,
}
"""By the name of a field; of configs inside a config, too."""

KINDS_OF_LAYERS = (
    "layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "block_types",
)  # fmt: skip
"""Lists with an entry a layer: a tiny model has a layer of each kind that the default has."""

_SHARED_LAYERS: Fields = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
_GEMMA_3N: Fields = {**_SHARED_LAYERS, "laurel_rank": 8}
_ASSISTANT: Fields = {
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
_DOTS_3: Fields = {
    "layer_types": ["indexed_attention", "sliding_attention"],
    "head_dim": 24,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 32,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_qk_rope_head_dim": 8,
    "swa_v_head_dim": 16,
}
_QWEN_4: Fields = {
    "indexer_kv_heads": 1,
    "indexer_compress_ratio": 4,
}

OWN: Mapping[str, Fields] = {
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "gemma3n_text": _GEMMA_3N,
    "gemma4_assistant": {"text_config": _ASSISTANT, "backbone_hidden_size": HIDDEN},
    "gemma4_unified_assistant": {"text_config": _ASSISTANT, "backbone_hidden_size": HIDDEN},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"],
        "hash_seed": 3,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 16,
        "pronunciation_embed_dim": 16,
        "shape_vocab_size": 16,
        "shape_embed_dim": 16,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 2 * HIDDEN, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": _DOTS_3,
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "got_ocr2": {"vision_config": {"output_channels": 16, "image_size": 64, "mlp_dim": 64}},
    "phi4_multimodal": {
        "vision_config": {"image_size": 28, "crop_size": 28},
        "audio_config": {
            "ext_pw_out_channel": HIDDEN,
            "depthwise_separable_out_channel": HIDDEN,
            "nemo_conv_channels": HIDDEN,
            "intermediate_size": HIDDEN,
        },
    },
}
"""By model type."""

_WINDOWED: Fields = {"sliding_window": LIMIT}

EXTRA: Mapping[str, Mapping[str, Fields]] = {
    "llama": {"tied": {"tie_word_embeddings": True}},
    "gpt2": {"scores by layer": {"scale_attn_by_inverse_layer_idx": True}},
    "falcon": {
        "alibi": {"alibi": True},
        "new": {"new_decoder_architecture": True},
        "multi-head": {
            "multi_query": False,
            "num_kv_heads": 4,
            "parallel_attn": False,
            "bias": True,
        },
    },
    "gpt_bigcode": {"multi-head": {"multi_query": False}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}},
    "opt": {"norms after": {"do_layer_norm_before": False}},
    "stablelm": {
        "parallel": {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}
    },
    "phi": {"norms of heads": {"qk_layernorm": True}},
    "persimmon": {"no norms of heads": {"qk_layernorm": False}},
    "gemma4_text": {
        "experts": {"enable_moe_block": True},
        "shared keys": _SHARED_LAYERS,
        "keys as values": {"attention_k_eq_v": True},
    },
    "gemma4": {"experts": {"text_config": {"enable_moe_block": True}}},
    "granite": {
        "scaled": {
            "embedding_multiplier": 2.0,
            "logits_scaling": 1.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
        }
    },
    "granitemoehybrid": {"attention only": {"layer_types": ["attention", "attention"]}},
    "smollm3": {"some without positions": {"no_rope_layers": [1, 0]}},
    "gemma3_text": {"full first": {"layer_types": ["full_attention", "sliding_attention"]}},
    "doge": {"experts": {"is_moe": True, "num_experts": 4}},
    "laguna": {
        "no gates": {"gating": False},
        "soft cap": {"moe_router_logit_softcapping": 5.0},
    },
    "olmo": {"clipping": {"clip_qkv": 2.0}},
    "cohere": {"norms of heads": {"use_qk_norm": True}},
    "mpt": {"soft cap": {"attn_config": {"softmax_scale": 0.3}}},
    "llama4_text": {
        "no chunks": {"layer_types": ["full_attention", "full_attention"]},
        "tuned by position": {"attn_temperature_tuning": True, "floor_scale": 8},
    },
    "reformer": {"local": {"attn_layers": ["local", "local"]}},
}
"""By model type and name of the variant, what it sets."""

ROPE: Mapping[str, Fields] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ROPE_LIMIT},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ROPE_LIMIT,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": ROPE_LIMIT,
        "short_mscale": 1.1,
        "long_mscale": 1.3,
    },
}
"""Kinds of rotary frequencies; LongRoPE's factors depend on the size of the heads."""
