"""Drafts how a sequence goes on: prompt lookup over its own tokens. Pure Python.

The last tokens are looked up in what came before. Where they were followed by something, that is
the draft. Of several places the one that agrees with the most last tokens is taken, and of equals
the latest (arXiv:2304.04487; transformers calls it prompt lookup). A text that repeats itself with
a period shorter than the draft goes on with that period.

The index grows with each token: one entry for each pair of neighbours, and about 100 bytes. A draft
that came true is followed without a lookup.

Each token of the answer also tells how good the drafts are, whether or not they were used:
`chance` counts how often a draft after so many equal tokens came true. So a sequence that begins
to repeat itself is noticed, and one that does not costs the model nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

LONGEST = 32
"""Equal tokens, beyond which no more are counted."""

PLACES = 16
"""The latest places that are compared."""

_CHANCES = (0.3, 0.5, 0.7, 0.85, 0.9)
"""The chance of a draft after 2 to 3, 4 to 7, 8 to 15, 16 to 31, and 32 equal tokens, before the
sequence itself has told it."""

_WEIGHT = 4
"""Such a chance counts like so many drafts."""

_MEMORY = 64
"""Drafts after which all counts are halved, so that the last ones count most."""


class Drafter:
    """Of one sequence."""

    def __init__(self, tokens: Sequence[int]) -> None:
        """`tokens`: all tokens of the sequence so far."""
        self._tokens = list(tokens)
        # By pair of neighbours: the place behind the last one. By place: the place before it that
        # follows the same pair, or 0.
        self._last: dict[int, int] = {}
        self._before = array("i", bytes(4 * min(2, len(self._tokens) + 1)))
        self._at = 0
        """The place of the draft for the next token; 0 for none."""
        self._equal = 0
        """Tokens before it that are equal to the last ones."""
        self._hits = [_WEIGHT * chance for chance in _CHANCES]
        self._trials = [float(_WEIGHT)] * len(_CHANCES)
        last, before, first = self._last, self._before, -1
        for place, token in enumerate(self._tokens, 1):
            if place > 1:
                pair = first << 32 | token
                before.append(last.get(pair, 0))
                last[pair] = place
            first = token
        self._look_up()

    def take(self, token: int) -> None:
        """Add the token that came."""
        tokens = self._tokens
        came_true = False
        if self._at:
            came_true = tokens[self._at] == token
            self._count(_kind(self._equal), came_true)
        tokens.append(token)
        place = len(tokens)
        if place > 1:
            pair = tokens[-2] << 32 | token
            self._before.append(self._last.get(pair, 0))
            self._last[pair] = place
        else:
            self._before.append(0)
        if came_true:
            self._at += 1
            self._equal += 1
        else:
            self._look_up()

    def draft(self, index: int) -> int:
        """Return the token that may come `index` tokens after the next one. There must be a draft:
        `chance(0)` is above 0."""
        at = self._at + index
        size = len(self._tokens)
        if at >= size:
            at = self._at + (at - self._at) % (size - self._at)
        return self._tokens[at]

    def chance(self, index: int) -> float:
        """Return the chance that `draft(index)` comes if all drafts before it came; 0 if there is
        none."""
        if not self._at:
            return 0.0
        kind = _kind(self._equal + index)
        return self._hits[kind] / self._trials[kind]

    def _look_up(self) -> None:
        tokens, size = self._tokens, len(self._tokens)
        self._at = self._equal = 0
        at = self._before[size] if size > 1 else 0
        for _ in range(PLACES):
            if not at:
                return
            equal = 2
            while equal < min(at, LONGEST) and tokens[at - equal - 1] == tokens[size - equal - 1]:
                equal += 1
            if equal > self._equal:
                self._at, self._equal = at, equal
            at = self._before[at]

    def _count(self, kind: int, came_true: bool) -> None:
        if self._trials[kind] >= _MEMORY:
            self._trials[kind] /= 2
            self._hits[kind] /= 2
        self._trials[kind] += 1
        self._hits[kind] += came_true


def _kind(equal: int) -> int:
    return min(equal.bit_length() - 2, len(_CHANCES) - 1)
