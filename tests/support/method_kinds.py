"""The kinds of adapters that are PEFT's other methods, virtual tokens among them: a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import peft
from peft import PeftConfig

from support.families import Family
from support.kind import VIRTUAL, Kind, Make, Strength, trained_tokens


def _mlp(f: Family) -> bool:
    return bool(f.mlp)


_QUIET: Mapping[str, Any] = {"noise": 0.1}
"""Louder, PEFT in fp32 is further than the tolerance from PEFT in fp64 on some bases."""

_ON_LINEARS: Mapping[str, tuple[str, Make, Mapping[str, Any]]] = {
    "ia3": (
        "IA3Config",
        lambda f: {"feedforward_modules": [], "fan_in_fan_out": f.conv1d},
        {},
    ),
    "ia3, feedforward": (
        "IA3Config",
        lambda f: {"feedforward_modules": [f.mlp[-1]], "fan_in_fan_out": f.conv1d},
        {"fits": _mlp},
    ),
    "loha": ("LoHaConfig", lambda f: {"r": 4, "alpha": 4}, {"strength": Strength.SCALING}),
    "lokr": ("LoKrConfig", lambda f: {"r": 4, "alpha": 4}, {"strength": Strength.SCALING}),
    "lokr, both decomposed": (
        "LoKrConfig",
        lambda f: {"r": 2, "alpha": 2, "decompose_both": True, "decompose_factor": 8},
        {"strength": Strength.SCALING},
    ),
    "adalora": (
        "AdaLoraConfig",
        lambda f: {
            "init_r": 6,
            "target_r": 4,
            "lora_alpha": 8,
            "total_step": 10,
            "fan_in_fan_out": f.conv1d,
        },
        {"strength": Strength.SCALING, "noise": 0.6},
    ),
    "vera": ("VeraConfig", lambda f: {"r": 16, "fan_in_fan_out": f.conv1d}, {"noise": 1.0}),
    "vera, projections not saved": (
        "VeraConfig",
        lambda f: {"r": 16, "fan_in_fan_out": f.conv1d, "save_projection": False},
        {"noise": 1.0},
    ),
    "boft": ("BOFTConfig", lambda f: {"fan_in_fan_out": f.conv1d}, {}),
    "oft": ("OFTConfig", lambda f: {"oft_block_size": 16, "fan_in_fan_out": f.conv1d}, _QUIET),
    "hra": ("HRAConfig", lambda f: {"r": 4}, {}),
    "fourierft": (
        "FourierFTConfig",
        lambda f: {"n_frequency": 100, "scaling": 20.0, "fan_in_fan_out": f.conv1d},
        {},
    ),
    "vblora": (
        "VBLoRAConfig",
        lambda f: {
            "r": 2,
            "num_vectors": 16,
            "vector_length": 32,
            "topk": 2,
            "fan_in_fan_out": f.conv1d,
        },
        {"noise": 30.0},
    ),
    "unilora": ("UniLoraConfig", lambda f: {"fan_in_fan_out": f.conv1d}, {}),
    "miss": ("MissConfig", lambda f: {"r": 8}, {}),
    "randlora": ("RandLoraConfig", lambda f: {"r": 8, "randlora_alpha": 8}, _QUIET),
    "road": ("RoadConfig", lambda f: {"group_size": 16}, {}),
    "hira": ("HiraConfig", lambda f: {"r": 8, "fan_in_fan_out": f.conv1d}, {}),
    "shira": (
        "ShiraConfig",
        lambda f: {"r": 4, "random_seed": 1, "fan_in_fan_out": f.conv1d},
        {"strength": Strength.SCALING},
    ),
    "c3a": ("C3AConfig", lambda f: {"block_size": 16}, {"noise": 3.0}),
    "waveft": ("WaveFTConfig", lambda f: {"n_frequency": 64}, _QUIET),
    "osf": ("OSFConfig", lambda f: {"effective_rank": 4}, {}),
    "delora": ("DeloraConfig", lambda f: {"r": 4}, {}),
    "gralora": ("GraloraConfig", lambda f: {"r": 8}, {}),
    "glora": ("GloraConfig", lambda f: {"r": 4}, {}),
    "lily": ("LilyConfig", lambda f: {"r": 4}, {}),
    "frod": ("FrodConfig", lambda f: {"progressbar": False}, {}),
    "pvera": ("PveraConfig", lambda f: {"r": 16}, {}),
    "tinylora": ("TinyLoraConfig", lambda f: {"u": 8}, {}),
    "psoft": ("PsoftConfig", lambda f: {"r": 8, "psoft_alpha": 8}, {}),
    "peanut": ("PeanutConfig", lambda f: {"r": 4}, {}),
    "deft": ("DeftConfig", lambda f: {"r": 4}, {"noise": 3.0}),
    "supertuning": ("SupertuningConfig", lambda f: {"sparsity": 0.9}, {}),
    "beft": ("BeftConfig", lambda f: {}, {}),
    "poly": ("PolyConfig", lambda f: {"r": 4, "n_tasks": 2}, {}),
}
"""By name: the config's class, its fields beside the targets, and the kind's own properties."""

_ELSEWHERE: Mapping[str, tuple[str, Make, Mapping[str, Any]]] = {
    "ln_tuning": ("LNTuningConfig", lambda f: {"target_modules": [f.norm]}, {}),
    "trainable_tokens": (
        "TrainableTokensConfig",
        lambda f: {"token_indices": [*trained_tokens()], "target_modules": [f.embedding]},
        {"tied_too": True},
    ),
    "trainable_tokens, head too": (
        "TrainableTokensConfig",
        lambda f: {
            "token_indices": [*trained_tokens()],
            "target_modules": [f.embedding, f.head],
        },
        {"tied_too": True},
    ),
    "adaption_prompt": (
        "AdaptionPromptConfig",
        lambda f: {"adapter_len": VIRTUAL, "adapter_layers": 1},
        {},
    ),
    "shadow": ("ShadowConfig", lambda f: {"r": 4, "shadow_alpha": 1.0}, {}),
}
"""The same, for methods that do not take projections."""


def _kv_shape(f: Family) -> Mapping[str, Any]:
    """What PEFT does not read from a config by itself: heads of keys and values."""
    return {"num_virtual_tokens": VIRTUAL}


_PROMPTS: Mapping[str, tuple[str, Make, Mapping[str, Any]]] = {
    "prompt tuning": ("PromptTuningConfig", _kv_shape, {"noise": 1.0}),
    "p-tuning": (
        "PromptEncoderConfig",
        lambda f: {**_kv_shape(f), "encoder_hidden_size": 16},
        {},
    ),
    "p-tuning, lstm": (
        "PromptEncoderConfig",
        lambda f: {
            **_kv_shape(f),
            "encoder_hidden_size": 16,
            "encoder_reparameterization_type": "LSTM",
        },
        {},
    ),
    "prefix tuning": ("PrefixTuningConfig", _kv_shape, {"noise": 1.0}),
    "prefix tuning, projected": (
        "PrefixTuningConfig",
        lambda f: {**_kv_shape(f), "encoder_hidden_size": 16, "prefix_projection": True},
        {},
    ),
    "cartridge": ("CartridgeConfig", _kv_shape, {"noise": 1.0}),
    "multitask prompt tuning": (
        "MultitaskPromptTuningConfig",
        lambda f: {**_kv_shape(f), "num_tasks": 2},
        {},
    ),
    "cpt": (
        "CPTConfig",
        lambda f: {
            "cpt_token_ids": list(range(10, 10 + VIRTUAL)),
            "cpt_mask": [1] * VIRTUAL,
            "cpt_tokens_type_mask": [1, 2, 2, 3, 4][:VIRTUAL],
        },
        {},
    ),
}


def _methods(
    group: str,
    table: Mapping[str, tuple[str, Make, Mapping[str, Any]]],
    targets: Callable[[Family], Mapping[str, Any]] = lambda f: {},
    *,
    strength: Strength = Strength.NONE,
) -> list[Kind]:
    def config(cls: str, make: Make) -> Callable[[Family], PeftConfig]:
        return lambda f: getattr(peft, cls)(task_type="CAUSAL_LM", **{**targets(f), **make(f)})

    return [
        Kind(name, group, config(cls, make), **{"strength": strength, **own})
        for name, (cls, make, own) in table.items()
    ]


def _projections(f: Family) -> Mapping[str, Any]:
    return {"target_modules": list(f.projections)}


METHODS: Sequence[Kind] = (
    *_methods(
        "Other methods on linear layers",
        _ON_LINEARS,
        _projections,
        strength=Strength.DISTANCE,
    ),
    *_methods("Methods of their own", _ELSEWHERE),
    *_methods("Virtual tokens", _PROMPTS),
)
