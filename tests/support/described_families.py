"""More families that the compiled step can describe, as tiny configs: a table.

What is in none of the others: norms after answers and none before, of whole projections and of
each head by itself, without weights, from one; pairs that rotate; attention beside the MLP; one
key head for all; vocabularies that fill no whole block.
"""

from __future__ import annotations

from collections.abc import Mapping

from support.families import (
    FAMILIES,
    FUSED_EXPERTS,
    HIDDEN,
    LAYERS,
    MAX_POSITIONS,
    SLIDING_WINDOW,
    Family,
    config_of,
)
from support.tokenizer import VOCAB_SIZE

_SPLIT_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED_MLP = ("gate_proj", "up_proj", "down_proj")
_HEAD_DIM = {"head_dim": 16}
_NO_HEADS = {"num_key_value_heads": None}

DESCRIBED: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("olmo", config_of("OlmoConfig"), _SPLIT_ATTENTION, _GATED_MLP),
        Family(
            "olmo2",
            config_of("Olmo2Config"),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            norm="post_attention_layernorm",
        ),
        Family(
            "nemotron",
            config_of("NemotronConfig", partial_rotary_factor=0.5, **_HEAD_DIM),
            _SPLIT_ATTENTION,
            ("up_proj", "down_proj"),
        ),
        Family(
            "starcoder2",
            config_of("Starcoder2Config", sliding_window=SLIDING_WINDOW, use_bias=True),
            _SPLIT_ATTENTION,
            ("c_fc", "c_proj"),
        ),
        Family(
            "cohere",
            config_of("CohereConfig", logit_scale=0.5, use_qk_norm=True),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family(
            "cohere2",
            config_of(
                "Cohere2Config",
                logit_scale=0.5,
                sliding_window=SLIDING_WINDOW,
                layer_types=["sliding_attention", "full_attention"],
                **_HEAD_DIM,
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
        Family(
            "glm4",
            config_of("Glm4Config", partial_rotary_factor=0.5, attention_bias=True, **_HEAD_DIM),
            _SPLIT_ATTENTION,
            ("gate_up_proj", "down_proj"),
        ),
        Family(
            "stablelm_parallel",
            config_of(
                "StableLmConfig",
                partial_rotary_factor=0.25,
                qk_layernorm=True,
                use_parallel_residual=True,
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "gpt_neox_sequential",
            config_of("GPTNeoXConfig", use_parallel_residual=False, **_NO_HEADS),
            ("query_key_value", "attention.dense"),
            ("dense_h_to_4h", "dense_4h_to_h"),
            embedding="embed_in",
        ),
        Family(
            "gpt_bigcode",
            config_of(
                "GPTBigCodeConfig",
                n_embd=HIDDEN,
                n_layer=LAYERS,
                n_head=4,
                n_positions=MAX_POSITIONS,
                n_inner=2 * HIDDEN,
                hidden_size=None,
                intermediate_size=None,
                num_hidden_layers=None,
                num_attention_heads=None,
                max_position_embeddings=None,
                **_NO_HEADS,
            ),
            ("c_attn", "attn.c_proj"),
            ("c_fc", "mlp.c_proj"),
            layers_pattern="h",
            embedding="wte",
            norm="ln_1",
        ),
        Family(
            "granite_odd",
            config_of(
                "GraniteConfig",
                vocab_size=VOCAB_SIZE + 3,
                logits_scaling=1.5,
                residual_multiplier=0.7,
                attention_multiplier=0.2,
                tie_word_embeddings=True,
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
        ),
        Family(
            "gemma2_odd",
            config_of(
                "Gemma2Config",
                vocab_size=VOCAB_SIZE + 13,
                query_pre_attn_scalar=16,
                sliding_window=SLIDING_WINDOW,
                attn_logit_softcapping=5.0,
                final_logit_softcapping=8.0,
                **_HEAD_DIM,
            ),
            _SPLIT_ATTENTION,
            _GATED_MLP,
            add_bos=True,
        ),
    )
}

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

MORE_MIXTURES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "olmoe",
            config_of("OlmoeConfig", num_experts=8, num_experts_per_tok=3),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
        Family(
            "granitemoe",
            config_of("GraniteMoeConfig", **_EXPERTS, residual_multiplier=0.7, logits_scaling=1.5),
            _SPLIT_ATTENTION,
            (),
            experts=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
        ),
        # One layer of each kind.
        Family(
            "qwen3_moe_dense",
            config_of(
                "Qwen3MoeConfig",
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=HIDDEN,
                head_dim=32,
                norm_topk_prob=True,
                mlp_only_layers=[0],
            ),
            _SPLIT_ATTENTION,
            # PEFT takes an MLP's names for those of experts.
            (),
            experts=FUSED_EXPERTS,
        ),
        # Sinks, two kinds of layers, gates between the other outputs and with a limit, biases.
        Family(
            "gpt_oss",
            config_of(
                "GptOssConfig",
                **_EXPERTS,
                intermediate_size=HIDDEN,
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=SLIDING_WINDOW,
                swiglu_limit=1.5,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4},
                **_HEAD_DIM,
            ),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
        # Sigmoid scores with a correction, in groups; the first layer is dense and wider.
        Family(
            "glm4_moe",
            config_of(
                "Glm4MoeConfig",
                n_routed_experts=8,
                num_experts_per_tok=3,
                n_group=4,
                topk_group=2,
                routed_scaling_factor=2.5,
                moe_intermediate_size=HIDDEN,
                use_qk_norm=True,
                **_HEAD_DIM,
            ),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
        # A correction of softmax's values.
        Family(
            "ernie4_5_moe",
            config_of(
                "Ernie4_5_MoeConfig",
                moe_num_experts=4,
                moe_k=2,
                moe_num_shared_experts=1,
                moe_intermediate_size=HIDDEN,
                moe_layer_start_index=0,
            ),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
        # Experts one after the other, and LayerNorms.
        Family(
            "phimoe",
            config_of("PhimoeConfig", **_EXPERTS, attention_bias=True, router_jitter_noise=0.2),
            _SPLIT_ATTENTION,
            (),
            experts=FUSED_EXPERTS,
        ),
    )
}
"""Mixtures of experts that are served as those in `families` are."""

MIXTURES = (*(name for name, family in FAMILIES.items() if family.experts), *MORE_MIXTURES)
"""They run on the compiled step."""

ATTENDING = ("bloom", "gptj", "codegen", "mpt")
"""Their attention cannot be replaced, and is described all the same. So is Falcon's, whose linears
PEFT's bitsandbytes leaves unquantized: `test_decoders.py` compares it with our own."""

COMPILED = (
    *(name for name, family in FAMILIES.items() if not family.experts),
    *DESCRIBED,
    *ATTENDING,
)
"""What runs on the compiled step, without experts."""
