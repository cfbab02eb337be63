"""Takes a request's tokens from its key's allowance."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.access import caller
from lorry.metrics import RequestMeter


def spend(prompt_tokens: int, meters: Sequence[RequestMeter]) -> None:
    """Take the prompt's tokens of the current request now, and each answer's at its end."""
    who = caller.current()
    if who is not None and who.spend is not None:
        who.spend(prompt_tokens)
        for meter in meters:
            meter.spend = who.spend
