"""Tokens, and where each pair of neighbours among them comes. Pure Python.

The index grows with each token: one entry for each pair of neighbours, and about 100 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

LONGEST = 32
"""Equal tokens, beyond which no more are counted."""

PLACES = 16
"""The latest places that are compared."""


class TokenIndex:
    """Of a text that only grows. Tokens below 0 are equal to no others' tokens."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        # By pair of neighbours: the place behind the last one. By place: the place before it that
        # follows the same pair, or 0.
        self._last: dict[int, int] = {}
        self._before = array("i", [0])
        self.extend(tokens)

    def append(self, token: int) -> None:
        tokens = self.tokens
        tokens.append(token)
        place = len(tokens)
        if place > 1:
            pair = tokens[-2] << 32 | token
            self._before.append(self._last.get(pair, 0))
            self._last[pair] = place
        else:
            self._before.append(0)

    def extend(self, tokens: Iterable[int]) -> None:
        # As `append`, in half the time.
        last, before, place = self._last, self._before, len(self.tokens)
        first = self.tokens[-1] if place else -1
        self.tokens.extend(tokens)
        for token in self.tokens[place:]:
            place += 1
            if place > 1:
                pair = first << 32 | token
                before.append(last.get(pair, 0))
                last[pair] = place
            else:
                before.append(0)
            first = token

    def find(self, text: Sequence[int]) -> tuple[int, int]:
        """Return the place before which the most tokens are equal to the last ones of `text`, and
        how many are: at least 2, or 0 and 0. `text` may be `tokens`, whose own end is no such
        place."""
        tokens, size = self.tokens, len(text)
        if size < 2:
            return 0, 0
        end = text[-2] << 32 | text[-1]
        at = self._before[size] if text is tokens else self._last.get(end, 0)
        best, most = 0, 0
        for _ in range(PLACES):
            if not at:
                break
            equal, longest = 2, min(at, size, LONGEST)
            while equal < longest and tokens[at - equal - 1] == text[size - equal - 1]:
                equal += 1
            if equal > most:
                best, most = at, equal
            at = self._before[at]
        return best, most
