"""Rules about the tokens of an answer: a minimum length, banned words, allowed or banned tokens.

A `Restriction` comes before the request's grammar, if there is one. Requests without rules do not
use this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorry.constraint import Rules
from lorry.errors import InvalidRequest

Words = NDArray[np.uint32]
"""A mask: bit i of word w is token 32 * w + i."""


class Following(Protocol):
    """One answer's position in its grammar or rules. Engine thread only."""

    def look_ahead(self, drafts: Sequence[int]) -> None:
        """Prepare for `drafts`, which may be the next tokens."""
        ...

    def allowed(self, place: int = 0) -> Sequence[int] | None:
        """Return the mask of the token behind the first `place` drafts, as in `Sample.allowed`."""
        ...

    def advance(self, token_id: int) -> None:
        """Take `token_id`, which `allowed` permitted."""
        ...

    def finished(self) -> bool:
        """True if only the end of the text may follow."""
        ...


class Restriction:
    """One answer under `rules`. A `Following`."""

    def __init__(self, rules: Rules, grammar: Following | None = None) -> None:
        self.rules = rules
        self._grammar = grammar
        self._count = 0
        self._always = _all(rules.vocab_size) if rules.only is None else _of(rules.only, rules)
        _clear(self._always, (one[0] for one in rules.banned if len(one) == 1))
        self._endless = _all(rules.vocab_size)
        """All tokens but those that end the answer."""
        _clear(self._endless, rules.ends)
        self._after: dict[tuple[int, ...], list[int]] = {}
        """By the last tokens of an answer: the tokens that may not follow."""
        for one in rules.banned:
            if len(one) > 1:
                self._after.setdefault(one[:-1], []).append(one[-1])
        self._lasting = rules.only is not None or bool(rules.banned)
        """True if the rules apply beyond the minimum length."""
        self._lengths = sorted({len(one) for one in self._after})
        self._tail: tuple[int, ...] = ()
        """The end of the answer, as long as the longest banned sequence without its last token."""
        self._drafts: tuple[int, ...] = ()
        self._masks: dict[int, Words | None] = {}
        """By place, those that were returned."""

    def look_ahead(self, drafts: Sequence[int]) -> None:
        self._drafts = tuple(drafts)
        if self._grammar is not None:
            self._grammar.look_ahead(drafts)

    def allowed(self, place: int = 0) -> Sequence[int] | None:
        """Return the mask of the token behind the first `place` drafts, or None if any token may
        come. Raises InvalidRequest if none may."""
        theirs = None if self._grammar is None else self._grammar.allowed(place)
        mask = self._masks[place] = self._mask(theirs, place)
        return theirs if mask is None else mask.data

    def _mask(self, theirs: Sequence[int] | None, place: int) -> Words | None:
        """Return `theirs`, the grammar's, under the rules; None if no rule applies."""
        early = self._count + place < self.rules.least
        if not early and not self._lasting:
            return None
        words = self._words(theirs, (*self._tail, *self._drafts[:place]))
        mask = words & self._endless[: len(words)] if early else words
        if early and theirs is not None and not mask.any():
            # The grammar has ended, which takes precedence over the minimum length.
            mask = words
        if not mask.any():
            raise self._none_left()
        return mask

    def advance(self, token_id: int) -> None:
        """Take a token. Raises InvalidRequest if it is not in the mask: the model allows none of
        them."""
        mask = self._masks.get(0)
        if mask is not None:
            word = token_id // 32
            if not (word < len(mask) and int(mask[word]) >> token_id % 32 & 1):
                raise self._none_left()
        if self._drafts[:1] == (token_id,):
            self._drafts = self._drafts[1:]
            self._masks = {place - 1: mask for place, mask in self._masks.items() if place}
        else:
            self._drafts, self._masks = (), {}
        if self._grammar is not None:
            self._grammar.advance(token_id)
        self._count += 1
        if self._lengths:
            self._tail = (*self._tail, token_id)[-self._lengths[-1] :]

    def finished(self) -> bool:
        return self._grammar is not None and self._grammar.finished()

    def _words(self, theirs: Sequence[int] | None, tail: tuple[int, ...]) -> Words:
        words = self._always
        if theirs is not None:
            other = np.asarray(theirs, dtype=np.uint32)
            size = min(len(words), len(other))
            words = words[:size] & other[:size]
        for length in self._lengths:
            banned = self._after.get(tail[-length:])
            if banned and length <= len(tail):
                words = words.copy()
                _clear(words, banned)
        return words

    def _none_left(self) -> InvalidRequest:
        beside = " and the grammar" if self._grammar is not None else ""
        return InvalidRequest(
            f"{self.rules.param}{beside}: no token is left that may come next",
            param=self.rules.param,
        )


def _all(vocab_size: int) -> Words:
    words = np.full(-(-vocab_size // 32), 0xFFFFFFFF, dtype=np.uint32)
    if vocab_size % 32:
        words[-1] = (1 << vocab_size % 32) - 1
    return words


def _of(tokens: Iterable[int], rules: Rules) -> Words:
    words = np.zeros(-(-rules.vocab_size // 32), dtype=np.uint32)
    ids = np.fromiter(tokens, dtype=np.int64)
    np.bitwise_or.at(words, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return words


def _clear(words: Words, tokens: Iterable[int]) -> None:
    for token in tokens:
        if token // 32 < len(words):
            words[token // 32] &= ~np.uint32(1 << token % 32)
