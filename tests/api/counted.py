"""The usage of an answer, without how much of its prompt happened to be in the prefix cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_CACHED = "cached_tokens"


def counts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Of any route; of `/v1/messages`, `input_tokens` is the whole prompt, as elsewhere."""
    usage: dict[str, Any] = copy.deepcopy(answer["usage"])
    if "cache_read_input_tokens" in usage:
        usage["input_tokens"] += usage.pop("cache_read_input_tokens")
        return usage
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    if details is not None:
        assert 0 <= details.pop(_CACHED) < prompt
    return usage
