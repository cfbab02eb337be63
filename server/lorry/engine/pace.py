"""How many prompt tokens make a step take about a given time. Pure Python, without a clock.

The time of a prompt token grows with its position, as attention does. It is learned from the steps
that have run, separately for each 1024 positions. The time of the rows that decode is learned from
steps without prompts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorry.core import Batch

PLACES = 1024
"""Positions that share a rate."""

KEPT = 0.8
"""Weight of a step compared to the one after it."""

FIRST = 64
"""Prompt tokens of a step as long as nothing is known."""

LEAST = 16
"""Prompt tokens of a step, however long they take: fewer hardly make it shorter."""


@dataclass(slots=True)
class _Average:
    seconds: float = 0.0
    count: float = 0.0
    """Of tokens or steps."""

    def add(self, seconds: float, count: float) -> None:
        self.seconds = self.seconds * KEPT + seconds
        self.count = self.count * KEPT + count

    @property
    def value(self) -> float:
        return self.seconds / self.count if self.count else 0.0


class Pace:
    """What steps have taken, and what the next one may have."""

    def __init__(self, target: float | None) -> None:
        """`target`: seconds of a step; None for no limit."""
        self._target = target
        self._decode = _Average()
        """Of steps without prompts."""
        self._prompt: dict[int, _Average] = {}
        """Of prompt tokens, by position // `PLACES`."""

    def limit(self, most: int, positions: Iterable[int], decodes: bool) -> int:
        """Return how many prompt tokens the next step may have, at most `most`. `positions`: where
        prompts continue. `decodes`: True if other rows of the step decode."""
        if self._target is None:
            return most
        if not self._prompt:
            return min(most, FIRST)
        left = self._target - (self._decode.value if decodes else 0.0)
        # A clock may have seen no time at all.
        each = max(self._seconds(max(positions, default=0)), 1e-9)
        return min(most, max(LEAST, int(min(left / each, most))))

    def learn(self, batch: Batch, seconds: float) -> None:
        """Take note of what a step has taken."""
        if self._target is None:
            return
        prompts = [
            (row.start + len(row.token_ids) // 2, len(row.token_ids))
            for row in batch.rows
            if len(row.token_ids) - row.drafts > 1
        ]
        if not prompts:
            self._decode.add(seconds, 1)
            return
        if len(prompts) < len(batch.rows):
            seconds = max(0.0, seconds - self._decode.value)
        shares = [count * self._seconds(position) for position, count in prompts]
        whole = sum(shares)
        tokens = sum(count for _, count in prompts)
        for (position, count), share in zip(prompts, shares, strict=True):
            part = share / whole if whole else count / tokens
            self._prompt.setdefault(position // PLACES, _Average()).add(seconds * part, count)

    def _seconds(self, position: int) -> float:
        """Return what a prompt token at `position` takes, by the nearest positions that are
        known."""
        place = position // PLACES
        nearest = min(self._prompt, key=lambda known: (abs(known - place), known), default=None)
        return 0.0 if nearest is None else self._prompt[nearest].value
