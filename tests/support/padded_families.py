"""The families that cannot be packed in one row, so that every sequence has its own: a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from support.families import HIDDEN, LAYERS, MAX_POSITIONS, SLIDING_WINDOW, Family, config_of

_NO_GQA: dict[str, Any] = {"num_key_value_heads": None}

UNPACKABLE: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "falcon",
            config_of(
                "FalconConfig", intermediate_size=None, new_decoder_architecture=False, **_NO_GQA
            ),
            ("query_key_value", "self_attention.dense"),
            ("dense_h_to_4h", "dense_4h_to_h"),
            layers_pattern="h",
            embedding="word_embeddings",
        ),
        Family(
            "gptj",
            config_of(
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
            config_of(
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
            config_of(
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
            config_of(
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
            config_of(
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
            config_of("MptConfig", d_model=HIDDEN, n_layers=LAYERS, n_heads=4, **_NO_NAMES),
            ("Wqkv", "attn.out_proj"),
            ("up_proj", "down_proj"),
            layers_pattern="blocks",
            embedding="wte",
            norm="norm_1",
        ),
        Family(
            "gpt_neo",
            config_of(
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
