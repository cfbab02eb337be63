"""What each version of PEFT wrote to `adapter_config.json`: the fields, when they came and went,
and their defaults. Facts, read off PEFT's config classes from version to version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Step = tuple[str, Mapping[str, Any], tuple[str, ...]]
"""A version, the fields that were new in it with their defaults, and those that were gone."""

EVERY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0.0.1", ("peft_type", "task_type", "inference_mode")),
    ("0.1.0", ("base_model_name_or_path",)),
    ("0.4.0", ("auto_mapping", "revision")),
    ("0.18.0", ("peft_version",)),
)
"""Of every method."""

HISTORY: Mapping[str, tuple[Step, ...]] = {
    "LORA": (
        (
            "0.0.1",
            {
                "r": 8,
                "target_modules": None,
                "lora_alpha": None,
                "lora_dropout": None,
                "merge_weights": False,
                "fan_in_fan_out": False,
                "enable_lora": None,
                "bias": "none",
            },
            (),
        ),
        ("0.1.0", {"modules_to_save": None}, ()),
        ("0.3.0", {"init_lora_weights": True}, ("merge_weights", "enable_lora")),
        ("0.4.0", {"layers_to_transform": None, "layers_pattern": None}, ()),
        ("0.6.0", {"rank_pattern": {}, "alpha_pattern": {}}, ()),
        (
            "0.7.0",
            {"megatron_config": None, "megatron_core": "megatron.core", "loftq_config": {}},
            (),
        ),
        ("0.8.0", {"use_rslora": False}, ()),
        ("0.9.0", {"use_dora": False}, ()),
        ("0.10.0", {"layer_replication": None}, ()),
        ("0.12.0", {"runtime_config": {"ephemeral_gpu_offload": False}}, ()),
        ("0.14.0", {"exclude_modules": None, "eva_config": None, "lora_bias": False}, ()),
        ("0.15.0", {"trainable_token_indices": None, "corda_config": None}, ()),
        ("0.16.0", {"use_qalora": False, "qalora_group_size": 16}, ()),
        ("0.17.0", {"target_parameters": None}, ()),
        (
            "0.18.0",
            {"alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False},
            (),
        ),
        ("0.19.0", {"lora_ga_config": None, "use_bdlora": None}, ()),
        ("0.20.0", {"velora_config": None, "monteclora_config": None}, ()),
        ("0.21.2", {"kasa_config": None}, ()),
    ),
    "ADALORA": (
        (
            "0.3.0",
            {
                "r": 8,
                "target_modules": None,
                "lora_alpha": None,
                "lora_dropout": None,
                "fan_in_fan_out": False,
                "bias": "none",
                "modules_to_save": None,
                "init_lora_weights": True,
                "target_r": 8,
                "init_r": 12,
                "tinit": 0,
                "tfinal": 0,
                "deltaT": 1,
                "beta1": 0.85,
                "beta2": 0.85,
                "orth_reg_weight": 0.5,
                "total_step": None,
                "rank_pattern": None,
            },
            (),
        ),
        ("0.4.0", {"layers_to_transform": None, "layers_pattern": None}, ()),
        ("0.6.0", {"alpha_pattern": {}}, ()),
        (
            "0.7.0",
            {"megatron_config": None, "megatron_core": "megatron.core", "loftq_config": {}},
            (),
        ),
        ("0.8.0", {"use_rslora": False}, ()),
        ("0.9.0", {"use_dora": False}, ()),
        ("0.10.0", {"layer_replication": None}, ()),
        ("0.12.0", {"runtime_config": {"ephemeral_gpu_offload": False}}, ()),
        ("0.14.0", {"exclude_modules": None, "eva_config": None, "lora_bias": False}, ()),
        ("0.15.0", {"trainable_token_indices": None, "corda_config": None}, ()),
        ("0.16.0", {"use_qalora": False, "qalora_group_size": 16}, ()),
        ("0.17.0", {"target_parameters": None}, ()),
        (
            "0.18.0",
            {"alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False},
            (),
        ),
        ("0.19.0", {"lora_ga_config": None, "use_bdlora": None}, ()),
        ("0.20.0", {"velora_config": None, "monteclora_config": None}, ()),
        ("0.21.2", {"kasa_config": None}, ()),
    ),
    "IA3": (
        (
            "0.4.0",
            {
                "target_modules": None,
                "feedforward_modules": None,
                "fan_in_fan_out": False,
                "modules_to_save": None,
                "init_ia3_weights": True,
            },
            (),
        ),
        ("0.14.0", {"exclude_modules": None}, ()),
    ),
    "LOHA": (
        (
            "0.6.0",
            {
                "rank_pattern": {},
                "alpha_pattern": {},
                "r": 8,
                "alpha": 8,
                "rank_dropout": 0.0,
                "module_dropout": 0.0,
                "use_effective_conv2d": False,
                "target_modules": None,
                "init_weights": True,
                "layers_to_transform": None,
                "layers_pattern": None,
                "modules_to_save": None,
            },
            (),
        ),
        ("0.14.0", {"exclude_modules": None}, ()),
    ),
    "LOKR": (
        (
            "0.6.0",
            {
                "rank_pattern": {},
                "alpha_pattern": {},
                "r": 8,
                "alpha": 8,
                "rank_dropout": 0.0,
                "module_dropout": 0.0,
                "use_effective_conv2d": False,
                "decompose_both": False,
                "decompose_factor": -1,
                "target_modules": None,
                "init_weights": True,
                "layers_to_transform": None,
                "layers_pattern": None,
                "modules_to_save": None,
            },
            (),
        ),
        ("0.14.0", {"rank_dropout_scale": False, "exclude_modules": None}, ()),
    ),
    "VERA": (
        (
            "0.11.0",
            {
                "r": 256,
                "target_modules": None,
                "projection_prng_key": 0,
                "save_projection": True,
                "vera_dropout": 0.0,
                "d_initial": 0.1,
                "fan_in_fan_out": False,
                "bias": "none",
                "modules_to_save": None,
                "init_weights": True,
                "layers_to_transform": None,
                "layers_pattern": None,
            },
            (),
        ),
    ),
    "LN_TUNING": (
        ("0.11.0", {"target_modules": None, "modules_to_save": None}, ()),
        ("0.14.0", {"exclude_modules": None}, ()),
    ),
    "TRAINABLE_TOKENS": (
        ("0.15.0", {"token_indices": [], "target_modules": None, "init_weights": True}, ()),
    ),
    "PROMPT_TUNING": (
        (
            "0.0.1",
            {
                "num_virtual_tokens": None,
                "token_dim": None,
                "num_transformer_submodules": 1,
                "num_attention_heads": None,
                "num_layers": None,
                "prompt_tuning_init": "RANDOM",
                "prompt_tuning_init_text": None,
                "tokenizer_name_or_path": None,
            },
            (),
        ),
        ("0.7.0", {"tokenizer_kwargs": None}, ()),
        ("0.17.0", {"modules_to_save": None}, ()),
    ),
    "P_TUNING": (
        (
            "0.0.1",
            {
                "num_virtual_tokens": None,
                "token_dim": None,
                "num_transformer_submodules": 1,
                "num_attention_heads": None,
                "num_layers": None,
                "encoder_reparameterization_type": "MLP",
                "encoder_hidden_size": None,
                "encoder_num_layers": 2,
                "encoder_dropout": 0.0,
            },
            (),
        ),
        ("0.17.0", {"modules_to_save": None}, ()),
    ),
    "PREFIX_TUNING": (
        (
            "0.0.1",
            {
                "num_virtual_tokens": None,
                "token_dim": None,
                "num_transformer_submodules": 1,
                "num_attention_heads": None,
                "num_layers": None,
                "encoder_hidden_size": None,
                "prefix_projection": False,
                "postprocess_past_key_value_function": None,
            },
            (),
        ),
        ("0.1.0", {}, ("postprocess_past_key_value_function",)),
        ("0.17.0", {"modules_to_save": None}, ()),
        ("0.19.0", {"init_weights": None}, ()),
    ),
    "CPT": (
        (
            "0.14.0",
            {
                "num_virtual_tokens": None,
                "token_dim": None,
                "num_transformer_submodules": None,
                "num_attention_heads": None,
                "num_layers": None,
                "cpt_token_ids": None,
                "cpt_mask": None,
                "cpt_tokens_type_mask": None,
                "opt_weighted_loss_type": "none",
                "opt_loss_decay_factor": 1.0,
                "opt_projection_epsilon": 0.1,
                "opt_projection_format_epsilon": 0.1,
                "tokenizer_name_or_path": None,
            },
            (),
        ),
        ("0.17.0", {"modules_to_save": None}, ()),
    ),
}
"""By `peft_type`."""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def versions(peft_type: str) -> Iterator[str]:
    """Those in which something was new, of the method or of all."""
    own = [version for version, _, _ in HISTORY[peft_type]]
    first = _number(own[0])
    general = [version for version, _ in EVERY if _number(version) > first]
    yield from sorted({*own, *general}, key=_number)


def as_written(version: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, of today, with the fields that `version` knew and no others; what has gone since
    is as it was by default."""
    now = _number(version)
    fields: dict[str, Any] = {}
    for since, names in EVERY:
        if _number(since) <= now:
            fields |= dict.fromkeys(names)
    for since, new, gone in HISTORY[config["peft_type"]]:
        if _number(since) <= now:
            fields |= new
            fields = {name: value for name, value in fields.items() if name not in gone}
    written = {name: config.get(name, default) for name, default in fields.items()}
    if "peft_version" in written:
        written["peft_version"] = version
    return written
