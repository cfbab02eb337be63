"""The distinct tokens of a sequence, kept from step to step. Pure Python."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class Seen:
    """Of a prompt and its answer so far."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._known = set(prompt)
        self._followed = 0
        self.tokens = array("q", self._known)
        """In no order; it only grows."""

    def follow(self, answer: Sequence[int]) -> None:
        """Add the tokens that have come since the last call. `answer` is all of the answer."""
        for token in answer[self._followed :]:
            if token not in self._known:
                self._known.add(token)
                self.tokens.append(token)
        self._followed = len(answer)
