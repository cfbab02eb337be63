"""Resolves a body's fields to complete `SamplingParams`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from lorry.api.bounds import MAX_STOP_LENGTH, MAX_STOPS
from lorry.core import SamplingParams
from lorry.errors import InvalidRequest

_SEEDS = 2**53
"""Random seeds are small enough for JavaScript's numbers, as answers contain them in JSON."""

_SEED_MASK = 2**64 - 1

MAX_BIAS = 100.0


def for_answer(params: SamplingParams, index: int) -> SamplingParams:
    """Return the parameters of answer `index` of several: the first uses the seed itself."""
    return replace(params, seed=(params.seed + index) & _SEED_MASK)


def shown_seed(params: SamplingParams) -> int | None:
    """Return the seed for the client; None if nothing was drawn."""
    return params.seed if params.temperature > 0 else None


def temperature_of(
    temperature: float | None, do_sample: bool | None, *, default: float | None = None
) -> float:
    """Resolve the temperature by TGI's rule: a temperature samples, with or without `do_sample`;
    `do_sample` alone samples at 1; neither is greedy. 0 is greedy, as in OpenAI's API. `default` is
    an adapter's temperature if the request has neither."""
    if temperature is not None:
        return temperature
    if default is not None and do_sample is not False:
        return default
    return 1.0 if do_sample else 0.0


class Filters(Protocol):
    """These fields of a body; None if not given."""

    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def typical_p(self) -> float | None: ...
    @property
    def repetition_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def presence_penalty(self) -> float | None: ...


def filters_of(given: Filters, own: Mapping[str, float]) -> dict[str, Any]:
    """Return fields of `SamplingParams`; `own` are an adapter's defaults. A negative `top_k` is
    off, as in vLLM."""

    def said(value: float | None, name: str, default: float) -> float:
        return own.get(name, default) if value is None else value

    return {
        # A mass of zero selects the likeliest token, as in OpenAI's API.
        "top_k": 1 if given.top_p == 0 else max(0, int(said(given.top_k, "top_k", 0))),
        "top_p": said(given.top_p or None, "top_p", 1.0),
        "min_p": said(given.min_p, "min_p", 0.0),
        "typical_p": said(given.typical_p, "typical_p", 1.0),
        "repetition_penalty": said(given.repetition_penalty, "repetition_penalty", 1.0),
        "frequency_penalty": said(given.frequency_penalty, "frequency_penalty", 0.0),
        "presence_penalty": said(given.presence_penalty, "presence_penalty", 0.0),
    }


def seed_of(seed: int | None) -> int:
    return secrets.randbelow(_SEEDS) if seed is None else seed & _SEED_MASK


def stops_of(stop: str | Sequence[str] | None, *, param: str = "stop") -> tuple[str, ...]:
    """Return the stop strings. Raises InvalidRequest."""
    given = (stop,) if isinstance(stop, str) else tuple(stop or ())
    # Forms send empty fields, and an empty string could not end any answer.
    stops = tuple(one for one in given if one)
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"{param} has {len(stops)} strings, the most is {MAX_STOPS}", param=param
        )
    for one in stops:
        if len(one) > MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"{param}: a stop string has up to {MAX_STOP_LENGTH} characters, not {len(one)}",
                param=param,
            )
    return tuple(dict.fromkeys(stops))


def ids_of(given: Sequence[int] | None, vocab_size: int, param: str) -> frozenset[int]:
    """Return token ids, empty if none are given. Raises InvalidRequest."""
    if given and len(given) > vocab_size:
        raise InvalidRequest(f"{param} has {len(given)} tokens, the base {vocab_size}", param=param)
    for one in given or ():
        if not 0 <= one < vocab_size:
            raise InvalidRequest(
                f"{param}: {one} is not a token id; they go from 0 to {vocab_size - 1}", param=param
            )
    return frozenset(given or ())


def bias_of(bias: Mapping[str, float] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Read `logit_bias`, whose keys are token ids as strings. Raises InvalidRequest."""
    pairs = []
    for key, value in (bias or {}).items():
        known = key.isascii() and key.isdigit() and len(key) < 19 and int(key) < vocab_size
        if not known:
            raise InvalidRequest(
                f"logit_bias: {key[:40]!r} is not a token id; they go from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise InvalidRequest(
                f"logit_bias.{key} must be from -100 to 100, not {value:g}", param="logit_bias"
            )
        pairs.append((int(key), float(value)))
    return tuple(pairs)
