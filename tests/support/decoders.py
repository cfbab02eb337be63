"""Every decoder that transformers has, made tiny from its config class.

The list is transformers' own (`MODEL_FOR_CAUSAL_LM_MAPPING`), so that a newer version brings
its classes here by itself. A decoder has variants where its config has other forms: a window
that is switched on, other rotary frequencies, no mask for what comes later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from support import tiny
from support.decoder_fields import EXTRA, FIELDS, KINDS_OF_LAYERS, OWN, ROPE, ROPE_LIMIT, Fields
from support.tokenizer import build_tokenizer

MAX_PARAMETERS = 3_000_000


class TooLarge(Exception):
    """What the tables make of a config is not tiny."""


@dataclass(frozen=True, slots=True)
class Decoder:
    model_type: str
    variant: str = ""
    own: Fields = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        return f"{self.model_type}, {self.variant}" if self.variant else self.model_type


def decoders() -> list[Decoder]:
    """One for each config class."""
    seen = set()
    found = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = CONFIG_MAPPING[model_type]
        if kind not in seen:
            seen.add(kind)
            found.append(Decoder(model_type))
    return found


def variants() -> Iterator[Decoder]:
    """Other forms of the same classes."""
    for decoder in decoders():
        known = _fields_of(CONFIG_MAPPING[decoder.model_type])
        if "use_sliding_window" in known:
            own = {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
            yield Decoder(decoder.model_type, "sliding", own)
        if "is_decoder" in known:
            yield Decoder(decoder.model_type, "bidirectional", {"is_decoder": False})
        for variant, own in EXTRA.get(decoder.model_type, {}).items():
            yield Decoder(decoder.model_type, variant, own)


def rotary() -> Iterator[Decoder]:
    """Every class that has rotary positions, with every kind of frequencies. Takes seconds:
    each class is built once."""
    for decoder in decoders():
        if "rope_parameters" in _fields_of(CONFIG_MAPPING[decoder.model_type]):
            for kind in ROPE:
                made = with_rope(decoder, kind)
                if made is not None:
                    yield made


def with_rope(decoder: Decoder, kind: str) -> Decoder | None:
    """None where the class does not take them."""
    try:
        base = config_of(decoder).rope_parameters
        sizes = _rotary_sizes(decoder)
    except Exception:  # noqa: BLE001 - whatever a class raises that cannot be made tiny
        return None
    if not base or not sizes:
        return None
    if all(isinstance(value, dict) for value in base.values()):
        own: Any = {name: {**value, **_rope(kind, max(sizes))} for name, value in base.items()}
    else:
        own = {**base, **_rope(kind, max(sizes))}
    more = {}
    if "original_max_position_embeddings" in _fields_of(CONFIG_MAPPING[decoder.model_type]):
        more["original_max_position_embeddings"] = ROPE_LIMIT
    made = Decoder(decoder.model_type, kind, {"rope_parameters": own, **more})
    try:
        config_of(made)
    except Exception:  # noqa: BLE001 - Phi-3 takes LongRoPE only, for example
        return None
    return made


def _rope(kind: str, size: int) -> Fields:
    made = dict(ROPE[kind])
    if kind == "longrope":
        made["short_factor"] = [1.0 + 0.1 * i for i in range(size)]
        made["long_factor"] = [2.0 + 0.5 * i for i in range(size)]
    return made


def _rotary_sizes(decoder: Decoder) -> set[int]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(decoder))
    return {buffer.numel() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}


def config_of(decoder: Decoder) -> PretrainedConfig:
    kind = CONFIG_MAPPING[decoder.model_type]
    return kind(**_tiny(kind, {**OWN.get(decoder.model_type, {}), **decoder.own}))


def build(decoder: Decoder, *, seed: int = 0) -> PreTrainedModel:
    config = config_of(decoder)
    with torch.device("meta"):
        on_meta = AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in on_meta.parameters())
    if count > MAX_PARAMETERS:
        raise TooLarge(f"{decoder.name}: {count} parameters")
    with torch.random.fork_rng():
        # Vectors stay near what they were, and attention sinks begin as random ones.
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tiny.fill(model, seed=seed)
    return model.eval()


def save(decoder: Decoder, folder: Path) -> Path:
    build(decoder).save_pretrained(folder)
    build_tokenizer(add_bos=False).save_pretrained(folder)
    return folder


def _tiny(kind: type[PretrainedConfig], own: Fields) -> dict[str, Any]:
    known = _fields_of(kind)
    made = {name: value for name, value in FIELDS.items() if name in known}
    kinds = _kinds_of_layers(kind)
    if kinds:
        layers = max(2, *(len(found) for found in kinds.values()))
        for name in {"num_hidden_layers", "num_layers"} & made.keys():
            made[name] = layers
        for name, found in kinds.items():
            made[name] = [found[min(i, len(found) - 1)] for i in range(layers)]
    if "kv_lora_rank" in known and "num_key_value_heads" in made:
        # Latent attention has keys and values for every head.
        made["num_key_value_heads"] = made["num_attention_heads"]
    default = _default(kind)
    for name in kind.sub_configs:
        sub = getattr(default, name, None)
        if isinstance(sub, PretrainedConfig):
            mine = _tiny(type(sub), OWN.get(sub.model_type, {}))
            made[name] = {**mine, "model_type": sub.model_type}
    for name, value in own.items():
        old = made.get(name)
        made[name] = {**old, **value} if isinstance(old, dict) else value
    return made


def _fields_of(kind: type[PretrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@cache
def _default(kind: type[PretrainedConfig]) -> PretrainedConfig | None:
    try:
        return kind()
    except ValueError:
        return None


def _kinds_of_layers(kind: type[PretrainedConfig]) -> Mapping[str, list[str]]:
    default = _default(kind)
    values = {name: getattr(default, name, None) for name in KINDS_OF_LAYERS}
    known = _fields_of(kind)
    return {
        name: list(dict.fromkeys(value))
        for name, value in values.items()
        if value and name in known
    }
