"""Recent answers of the same adapters, to draft from. Pure Python.

Answers of one adapter are often alike: the same keys of JSON, the same first sentence. What is kept
are the tokens of the last answers, each with the end of its prompt before it, by

    the digests of the adapters    scales do not matter: a draft changes no token
    who shares them                as in the prefix cache: the request's salt, and the caller if
                                   callers do not share

A request with `cache_prompt` false neither reads nor leaves any.

The room is bounded: of each set of adapters `PART` to 2 * `PART` tokens, of `SETS` sets, of which
the least recently used goes first. Answers of an adapter that is removed go with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as AbstractSequence

from lorry.core import Request
from lorry.engine.chances import Chances
from lorry.engine.token_index import TokenIndex

PART = 1024
"""Tokens. The older of two parts is dropped when the other one is full."""

SETS = 64

BEFORE = 8
"""Tokens of the prompt's end that are kept before an answer."""

_END = -1
"""Behind an answer: equal to no token."""

_BYTES = 150
"""Of a token in an index."""

MEMORY = SETS * 2 * PART * _BYTES
"""Bytes, at most."""

Key = tuple[str, str | None, tuple[str, ...]]


class RecentAnswers:
    """Of one set of adapters, and of those who share them."""

    def __init__(self) -> None:
        self.chances = Chances()
        """Of drafts from them, in all sequences."""
        self._newer, self._older = TokenIndex(), TokenIndex()

    def enter(self, tokens: AbstractSequence[int]) -> None:
        """Add an answer and what was before it."""
        for begin in range(0, len(tokens), PART):
            part = tokens[begin : begin + PART]
            if len(self._newer.tokens) + len(part) >= PART:
                # Drafters that are within the older part keep it until they leave it.
                self._older, self._newer = self._newer, TokenIndex()
            self._newer.extend((*part, _END))

    def find(self, text: AbstractSequence[int]) -> tuple[list[int], int, int]:
        """Return the tokens with the place before which the most are equal to the last ones of
        `text`, the place, and how many: 0 and 0 if fewer than 2. Of equals the newest."""
        newer, older = self._newer.find(text), self._older.find(text)
        if older[1] > newer[1]:
            return self._older.tokens, *older
        return self._newer.tokens, *newer


class AnswerBook:
    """All recent answers."""

    def __init__(self, *, per_caller: bool) -> None:
        """`per_caller`: callers do not share."""
        self._per_caller = per_caller
        self._sets: OrderedDict[Key, RecentAnswers] = OrderedDict()

    def of(self, request: Request, digests: tuple[str, ...]) -> RecentAnswers | None:
        """Return what a request with these adapters may read, and what its answer is entered in;
        None if nothing."""
        if not request.caching.prompt:
            return None
        key = (request.caching.salt, request.caller if self._per_caller else None, digests)
        found = self._sets.setdefault(key, RecentAnswers())
        self._sets.move_to_end(key)
        if len(self._sets) > SETS:
            self._sets.popitem(last=False)
        return found

    def enter(
        self, request: Request, digests: tuple[str, ...], answer: AbstractSequence[int]
    ) -> None:
        answers = self.of(request, digests)
        if answers is not None:
            answers.enter([*request.prompt_ids[-BEFORE:], *answer])

    def forget(self, digest: str) -> None:
        """Drop what this adapter has answered."""
        for key in [key for key in self._sets if digest in key[2]]:
            del self._sets[key]
