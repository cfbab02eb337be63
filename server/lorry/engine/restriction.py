"""Tokens that may not come: of an answer with a least length, with words or tokens kept out.

A `Restriction` stands before the request's grammar, if it has one, as a constraint of its
own. Requests without one never meet this room.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorry.core import Constraint
from lorry.errors import InvalidRequest

Words = NDArray[np.uint32]
"""A mask: bit i of word w is token 32 * w + i."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a request asks for, for all of its answers."""

    vocab_size: int
    least: int = 0
    """So many tokens come before one of `ends` may."""
    ends: frozenset[int] = frozenset()
    only: frozenset[int] | None = None
    """Nothing but these may come."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens of which none may be completed."""
    param: str = ""
    """The request's field, for error messages."""
    words: Words = field(init=False)
    """What may come wherever the answer stands."""
    endings: Words = field(init=False)
    """All but `ends`."""
    after: dict[tuple[int, ...], list[int]] = field(init=False)
    """By what an answer ends with, what may not follow."""

    def __post_init__(self) -> None:
        words = _all(self.vocab_size) if self.only is None else _of(self.only, self.vocab_size)
        _clear(words, (one[0] for one in self.banned if len(one) == 1))
        endings = _all(self.vocab_size)
        _clear(endings, self.ends)
        after: dict[tuple[int, ...], list[int]] = {}
        for one in self.banned:
            if len(one) > 1:
                after.setdefault(one[:-1], []).append(one[-1])
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "endings", endings)
        object.__setattr__(self, "after", after)

    @property
    def lasting(self) -> bool:
        """Whether they hold longer than the answer's least length."""
        return self.only is not None or bool(self.banned)


class Restriction:
    """One answer under `rules`. A `Constraint`."""

    def __init__(self, rules: Rules, grammar: Constraint | None = None) -> None:
        self.rules = rules
        self._grammar = grammar
        self._count = 0
        self._lengths = sorted({len(one) for one in rules.after})
        self._tail: tuple[int, ...] = ()
        """As much of the answer's end as a banned sequence has before its last token."""
        self._mask: Words | None = None

    def allowed(self) -> Sequence[int] | None:
        """The next token's mask; None where any may come. Raises InvalidRequest where none may."""
        theirs = None if self._grammar is None else self._grammar.allowed()
        early = self._count < self.rules.least
        if not early and not self.rules.lasting:
            self._mask = None
            return theirs
        words = self._words(theirs)
        mask = words & self.rules.endings[: len(words)] if early else words
        if early and theirs is not None and not mask.any():
            # The grammar is at its end: it goes before the least length.
            mask = words
        if not mask.any():
            raise self._none_left()
        self._mask = mask
        return mask.data

    def advance(self, token_id: int) -> None:
        """Raises InvalidRequest for a token that is not in the mask: the model has none of it."""
        if self._mask is not None:
            word = token_id // 32
            if not (word < len(self._mask) and int(self._mask[word]) >> token_id % 32 & 1):
                raise self._none_left()
        if self._grammar is not None:
            self._grammar.advance(token_id)
        self._count += 1
        if self._lengths:
            self._tail = (*self._tail, token_id)[-self._lengths[-1] :]

    def finished(self) -> bool:
        return self._grammar is not None and self._grammar.finished()

    def _words(self, theirs: Sequence[int] | None) -> Words:
        words = self.rules.words
        if theirs is not None:
            other = np.asarray(theirs, dtype=np.uint32)
            size = min(len(words), len(other))
            words = words[:size] & other[:size]
        for length in self._lengths:
            banned = self.rules.after.get(self._tail[-length:])
            if banned and length <= len(self._tail):
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


def _of(tokens: Iterable[int], vocab_size: int) -> Words:
    words = np.zeros(-(-vocab_size // 32), dtype=np.uint32)
    ids = np.fromiter(tokens, dtype=np.int64)
    np.bitwise_or.at(words, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return words


def _clear(words: Words, tokens: Iterable[int]) -> None:
    for token in tokens:
        if token // 32 < len(words):
            words[token // 32] &= ~np.uint32(1 << token % 32)
