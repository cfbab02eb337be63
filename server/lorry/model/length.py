"""How long a sequence may be: what the config states, and what stays right.

Up to some length a model's positions are what they were in training. Where that is stated,
nothing longer is served. LongRoPE (arXiv:2402.13753) has two sets of rotary frequencies, and
a sequence that grows beyond a length takes the second for all its tokens, those already in
the cache too. A token's keys would depend on what comes after it, so a server that keeps
keys, reads prompts in pieces and packs sequences in one row ends there (decision 0017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

from lorry.errors import ModelError
from lorry.model.progress import Say

UNSTATED = 2048
"""Tokens where a config states no length, as BLOOM's: what its kind was trained with."""

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""Fields that state it, the first that is there; learned positions have a row each."""

_SETS = ("factor", "mscale")
"""What LongRoPE has a short and a long one of; PhiMoE scales attention, too."""


def max_model_len(config: PretrainedConfig, given: str, asked: int | None, say: Say) -> int:
    """Tokens, prompt and answer together. `asked`: the setting; `given`: the model's name.

    Raises:
        ModelError: more is asked for than is served.
    """
    text = config.get_text_config()
    own = _stated(text)
    switch = _switch(text)
    if switch is not None and (own is None or switch < own):
        why = (
            f"beyond {switch} tokens its rotary frequencies are others for the whole sequence "
            "(LongRoPE), which is not served"
        )
        if asked is not None and asked > switch:
            raise ModelError(f"--max-model-len {asked}: {given}: {why}; give {switch} or less")
        if asked is None:
            say(f"{given} is served up to {switch} of {own or 'its'} tokens: {why}")
        own = switch
    if own is None:
        if asked is None:
            say(
                f"the config of {given} states no length; {UNSTATED} tokens are served "
                "(--max-model-len for more)"
            )
        return asked or UNSTATED
    if asked is not None and asked > own:
        raise ModelError(f"--max-model-len {asked}: {given} was made for {own} tokens at most")
    return own if asked is None else asked


def _stated(config: PretrainedConfig) -> int | None:
    for name in _NAMES:
        value = getattr(config, name, None)
        # XLNet's is -1: any.
        if isinstance(value, int) and value > 0:
            return value
    return None


def _switch(config: PretrainedConfig) -> int | None:
    """The shortest length beyond which LongRoPE's frequencies are others."""
    rope = getattr(config, "rope_parameters", None) or {}
    lengths = [
        int(one["original_max_position_embeddings"])
        for one in _ropes(rope)
        if one.get("rope_type") == "longrope"
        and any(one.get(f"short_{what}") != one.get(f"long_{what}") for what in _SETS)
    ]
    return min(lengths, default=None)


def _ropes(rope: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parameters, or those of each kind of layer."""
    yield rope
    yield from (value for value in rope.values() if isinstance(value, Mapping))
