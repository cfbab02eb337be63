"""What `lorry doctor` finds: each with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from lorry.settings import Settings


class FindingState(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works, and the user may want to know."""
    PROBLEM = "problem"
    """A server would not start, or not serve."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Made by `ok`, `note` and `problem`."""

    topic: str
    state: FindingState
    text: str
    advice: str | None
    """What to do about it. None: nothing."""


Check = Callable[[Settings], Iterator[Finding]]


def ok(topic: str, text: str) -> Finding:
    return Finding(topic, FindingState.OK, text, None)


def note(topic: str, text: str, advice: str) -> Finding:
    return Finding(topic, FindingState.NOTE, text, advice)


def problem(topic: str, text: str, advice: str) -> Finding:
    return Finding(topic, FindingState.PROBLEM, text, advice)
