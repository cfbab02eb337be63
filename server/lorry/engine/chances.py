"""How often drafts come true, by how many tokens before them were equal. Pure Python."""

from __future__ import annotations

_CHANCES = (0.3, 0.5, 0.7, 0.85, 0.9)
"""The chance of a draft after 2 to 3, 4 to 7, 8 to 15, 16 to 31, and 32 equal tokens, before any
has told it."""

_WEIGHT = 4
"""Such a chance counts like so many drafts."""

_MEMORY = 64
"""Drafts after which all counts are halved, so that the last ones count most."""


class Chances:
    def __init__(self) -> None:
        self._hits = [_WEIGHT * chance for chance in _CHANCES]
        self._trials = [float(_WEIGHT)] * len(_CHANCES)

    def of(self, equal: int) -> float:
        """Return the chance of a draft after `equal` equal tokens, at least 2."""
        kind = _kind(equal)
        return self._hits[kind] / self._trials[kind]

    def count(self, equal: int, came_true: bool) -> None:
        kind = _kind(equal)
        if self._trials[kind] >= _MEMORY:
            self._trials[kind] /= 2
            self._hits[kind] /= 2
        self._trials[kind] += 1
        self._hits[kind] += came_true


def _kind(equal: int) -> int:
    return min(equal.bit_length() - 2, len(_CHANCES) - 1)
