"""The kinds of adapters that are PEFT's LoRA, each with its own fields in the config: a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import peft
from peft import PeftConfig

from support.families import Family
from support.kind import Kind, Make, Strength, invocation_tokens, trained_tokens


def lora_config(f: Family, **fields: Any) -> PeftConfig:
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        fan_in_fan_out=fields.pop("fan_in_fan_out", f.conv1d),
        # Must have no effect at inference. PEFT wants none on the experts' parameters.
        lora_dropout=0.0 if f.experts else 0.1,
        **{"r": 8, "lora_alpha": 16, "target_modules": list(f.projections), **fields},
    )


def _experts(f: Family) -> bool:
    return bool(f.experts)


def _tied(f: Family) -> bool:
    return f.config().tie_word_embeddings


def _last(f: Family) -> str:
    return f.projections[-1]


_PLAIN: Mapping[str, Make] = {
    "lora": lambda f: {},
    "lora, a stranger's rank": lambda f: {"r": 5, "lora_alpha": 7},
    "rslora": lambda f: {"use_rslora": True, "r": 16, "lora_alpha": 8},
    "rank_pattern": lambda f: {
        "rank_pattern": {f.attention[0]: 4, rf"{f.layers_pattern}\.1\..*{_last(f)}": 12}
    },
    "alpha_pattern": lambda f: {
        "alpha_pattern": {_last(f): 32, rf"{f.layers_pattern}\.0\..*{f.attention[0]}": 2}
    },
    "layers_to_transform": lambda f: {
        "layers_to_transform": [1],
        "layers_pattern": f.layers_pattern,
    },
    "exclude_modules": lambda f: {"exclude_modules": [f.attention[-1]]},
    "regex": lambda f: {
        "target_modules": rf".*\.{f.layers_pattern}\.1\..*({f.attention[0]}|{_last(f)})"
    },
    "all-linear": lambda f: {"target_modules": "all-linear"},
    "bias=lora_only": lambda f: {"bias": "lora_only"},
    "bias=all": lambda f: {"bias": "all"},
    "lora_bias": lambda f: {"lora_bias": True},
    "gaussian start": lambda f: {"init_lora_weights": "gaussian"},
    "orthogonal start": lambda f: {"init_lora_weights": "orthogonal"},
}

_DORA: Mapping[str, Make] = {
    "dora": lambda f: {"use_dora": True},
    "dora+rslora": lambda f: {"use_dora": True, "use_rslora": True},
    "dora, patterns": lambda f: {
        "use_dora": True,
        "rank_pattern": {f.attention[0]: 4},
        "alpha_pattern": {_last(f): 32},
    },
}

_BEYOND: Mapping[str, Make] = {
    "lm_head target": lambda f: {
        "target_modules": [f.head, f.attention[0]],
        "fan_in_fan_out": False,
    },
    "embeddings target": lambda f: {"target_modules": [f.embedding, f.attention[0]]},
    "dora, embeddings target": lambda f: {
        "target_modules": [f.embedding, f.attention[0]],
        "use_dora": True,
    },
    "modules_to_save=head": lambda f: {"modules_to_save": [f.head]},
    "modules_to_save=embeddings": lambda f: {"modules_to_save": [f.embedding]},
    "modules_to_save=both": lambda f: {"modules_to_save": [f.head, f.embedding]},
    "modules_to_save=norm": lambda f: {"modules_to_save": [f.norm]},
    "trainable_token_indices": lambda f: {
        "trainable_token_indices": {f.embedding: [*trained_tokens()]}
    },
    "trainable_token_indices, head too": lambda f: {
        "trainable_token_indices": {name: [*trained_tokens()] for name in (f.embedding, f.head)}
    },
}

_TYING: Mapping[str, Make] = {
    "ensure_weight_tying, saved": lambda f: {
        "modules_to_save": [f.embedding],
        "ensure_weight_tying": True,
    },
    "ensure_weight_tying, tokens": lambda f: {
        "trainable_token_indices": {f.embedding: [*trained_tokens()]},
        "ensure_weight_tying": True,
    },
    "ensure_weight_tying, targets": lambda f: {
        "target_modules": [f.embedding, f.attention[0]],
        "ensure_weight_tying": True,
    },
    "ensure_weight_tying, dora": lambda f: {
        "target_modules": [f.head, f.attention[0]],
        "use_dora": True,
        "ensure_weight_tying": True,
        "fan_in_fan_out": False,
    },
}

_SPECIAL: Mapping[str, Make] = {
    # Attention only: PEFT fails where a module sees the tokens of all rows as one.
    "alora": lambda f: {
        "alora_invocation_tokens": list(invocation_tokens()),
        "target_modules": list(f.attention),
    },
    "layer_replication": lambda f: {"layer_replication": [[0, 2], [1, 2]]},
    "kasa": lambda f: {"kasa_config": peft.tuners.lora.config.KasaConfig()},
    "bdlora": lambda f: {
        "use_bdlora": peft.tuners.lora.config.BdLoraConfig(
            target_modules_bd_a=[f.attention[0]], nblocks=2, match_strict=False
        )
    },
    "velora": lambda f: {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=8)},
    "monteclora": lambda f: {"monteclora_config": peft.tuners.lora.config.MontecloraConfig()},
}

_STARTS: Mapping[str, Make] = {
    "pissa": lambda f: {"init_lora_weights": "pissa"},
    "olora": lambda f: {"init_lora_weights": "olora"},
    "corda": lambda f: {
        "init_lora_weights": "corda",
        "corda_config": peft.tuners.lora.config.CordaConfig(),
    },
    "lora-ga": lambda f: {
        "init_lora_weights": "lora_ga",
        "lora_ga_config": peft.tuners.lora.config.LoraGAConfig(),
    },
}

_EXPERTS: Mapping[str, Make] = {
    "target_parameters": lambda f: {"target_modules": list(f.attention)},
    "target_parameters, one of two": lambda f: {
        "target_modules": [],
        "target_parameters": [f.experts[-1]],
    },
    "target_parameters, router": lambda f: {
        "target_modules": [f.attention[0]],
        "target_parameters": [*f.experts, "mlp.gate.weight"],
    },
    "target_parameters, rslora": lambda f: {"target_modules": [], "use_rslora": True},
    "target_parameters, patterns": lambda f: {
        "target_modules": list(f.attention),
        "rank_pattern": {"gate_up_proj": 6, f.attention[0]: 2},
        "alpha_pattern": {rf"{f.layers_pattern}\.1\..*down_proj": 3, f.attention[0]: 9},
    },
}
"""Beside what `_experts_lora` gives each."""


def _experts_lora(f: Family, fields: Mapping[str, Any]) -> PeftConfig:
    # Conv1D families have none; PEFT wants no dropout on bare parameters.
    own = {"r": 4, "lora_alpha": 8, "target_parameters": list(f.experts), **fields}
    return peft.LoraConfig(task_type="CAUSAL_LM", **own)


def _on_experts(make: Make) -> Callable[[Family], PeftConfig]:
    return lambda f: _experts_lora(f, make(f))


def _loras(group: str, makes: Mapping[str, Make], **fields: Any) -> list[Kind]:
    def config(make: Make) -> Callable[[Family], PeftConfig]:
        return lambda f: lora_config(f, **make(f))

    return [
        Kind(name, group, config(make), strength=Strength.SCALING, **fields)
        for name, make in makes.items()
    ]


LORAS: Sequence[Kind] = (
    *_loras("LoRA", _PLAIN),
    *_loras("DoRA", _DORA),
    *_loras("Embeddings, head, whole modules", _BEYOND, tied_too=True),
    *_loras("Embeddings, head, whole modules", _TYING, tied_too=True, fits=_tied),
    *[
        Kind(
            name,
            "Mixtures of experts",
            _on_experts(make),
            strength=Strength.SCALING,
            fits=_experts,
            everywhere=True,
        )
        for name, make in _EXPERTS.items()
    ],
    *_loras("LoRA's relatives", _SPECIAL),
    *_loras("Starts that change the base", _STARTS),
    *[
        Kind(
            f"{kind.name}, converted",
            kind.group,
            kind.config,
            strength=Strength.SCALING,
            converted=True,
        )
        for kind in _loras("Starts that change the base", _STARTS)
    ],
)
