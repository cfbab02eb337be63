"""Every kind of adapter that PEFT can put on a causal language model: a table.

A kind says how its PEFT config looks for a family of tiny models, and how loud random
weights for it are. `peft_made.py` builds, fills and saves them; `matrix.py` says which of
them are served on which family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import peft
from peft import PeftConfig

from support.tiny import Family
from support.tokenizer import build_tokenizer

PROMPT = "The lorry waited at the gate with its lights on."
INVOCATION = " at the gate"
"""A part of the prompt, and of its tokens, that calls an activated LoRA."""
VIRTUAL = 5
"""Virtual tokens of the kinds that have some."""


class Strength(Enum):
    """What a scale other than 1 means."""

    SCALING = "what PEFT keeps in a layer's `scaling` is multiplied"
    DISTANCE = "what a layer's answer is away from the base's is multiplied"
    NONE = "nothing: it is refused"


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    group: str
    """Where it stands in the table: a heading."""
    config: Callable[[Family], PeftConfig]
    noise: float = 0.3
    """Standard deviation of what is added to every trained number; LoRA's own matrices are
    drawn to a loudness instead, as `peft_made.fill` has it."""
    strength: Strength = Strength.NONE
    fits: Callable[[Family], bool] = lambda f: True
    tied_too: bool = False
    """It reaches for the embeddings or the head, so that a base which ties them matters."""
    everywhere: bool = False
    """Tried on every base in every run, not only in the whole matrix."""
    converted: bool = False
    """Saved relative to its own start, as a plain LoRA of twice the rank."""


def _lora(f: Family, **fields: Any) -> PeftConfig:
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        fan_in_fan_out=fields.pop("fan_in_fan_out", f.conv1d),
        # Must have no effect at inference. PEFT wants none on the experts' parameters.
        lora_dropout=0.0 if f.experts else 0.1,
        **{"r": 8, "lora_alpha": 16, "target_modules": list(f.projections), **fields},
    )


def _experts(f: Family) -> bool:
    return bool(f.experts)


def _mlp(f: Family) -> bool:
    return bool(f.mlp)


def _tied(f: Family) -> bool:
    return f.config().tie_word_embeddings


def _last(f: Family) -> str:
    return f.projections[-1]


@cache
def invocation_tokens() -> tuple[int, ...]:
    ids = build_tokenizer(add_bos=False)(INVOCATION).input_ids
    return tuple(ids)


@cache
def trained_tokens() -> tuple[int, ...]:
    """Rows of the embeddings that are trained alone; most of them stand in the prompt."""
    ids = build_tokenizer(add_bos=False)(PROMPT).input_ids
    return tuple(sorted({*ids[2:12:2], 300, 301}))


Make = Callable[[Family], Mapping[str, Any]]

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


def _loras(group: str, makes: Mapping[str, Make], **fields: Any) -> list[Kind]:
    def config(make: Make) -> Callable[[Family], PeftConfig]:
        return lambda f: _lora(f, **make(f))

    return [
        Kind(name, group, config(make), strength=Strength.SCALING, **fields)
        for name, make in makes.items()
    ]


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


_QUIET: Mapping[str, Any] = {"noise": 0.1}
"""Louder, PEFT in fp32 is further than the tolerance from PEFT in fp64 on some bases."""

_METHODS: Mapping[str, tuple[str, Make, Mapping[str, Any]]] = {
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


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
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
        *_methods(
            "Other methods on linear layers",
            _METHODS,
            _projections,
            strength=Strength.DISTANCE,
        ),
        *_methods("Methods of their own", _ELSEWHERE),
        *_methods("Virtual tokens", _PROMPTS),
    )
}
NOT_BUILT: Mapping[str, str] = {
    "ADAMSS": "its start needs scikit-learn",
    "XLORA": "it routes between other adapters, which lie elsewhere on the disk",
}
"""Methods of PEFT without a kind here."""

PLAIN = KINDS["lora"]
"""What stands in every mixed batch."""
