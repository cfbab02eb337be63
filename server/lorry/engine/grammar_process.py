"""The program that compiles and follows grammars: run with `python -m`, not imported.

Grammars are untrusted, and llguidance works in calls that cannot be interrupted. Its own limits
stop most oversized grammars, but not a multiple of a large prime or `a{1000}{1000}`. So the work
is done in processes that the kernel ends. One process holds the tokenizer and forks another for
each grammar (`lorry.fork_server`), which limits its own time and memory. `lorry.engine.grammar`
is the other end.
"""

from __future__ import annotations

import json
import struct
import time
from array import array
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

import llguidance

from lorry.engine.grammar_source import reason_of, source_of
from lorry.fork_server import at_most, bound_memory, run

COMPILE_SECONDS = 5.0
"""Processor time for a grammar: reading, compiling, and the mask of the first token."""

CALL_SECONDS = 1.0
"""For one mask or one token taken. The other requests may have to wait that long."""

ANSWER_SECONDS, TOKEN_SECONDS = 1.0, 0.02
"""For all calls together: per answer, plus per token of it."""

MEMORY = 512 << 20
"""Bytes of a grammar and its answers."""

CALL = struct.Struct("=cII")
"""A request: NEW, TAKE, DROP or DRAFT, the answer's number, a token. Behind a DRAFT, which has no
token, are the drafts as `array("I")`."""

NEW, TAKE, DROP, DRAFT = b"n", b"t", b"d", b"a"
"""Only TAKE has a reply of its own."""

HEADER = struct.Struct("=II")
"""A reply's header: one of the codes below, and the answer's number. It takes eight bytes, so that
the words of a mask behind it are aligned."""

OK, OVER, WRONG, MASK, LOST = range(5)
"""Every TAKE is answered at once with OK, with OVER if only the end may follow, or with WRONG and
a reason. After OK and OVER comes the next token's MASK, or LOST with a reason, once it is computed,
while the model runs. TAKEs go first. The grammar itself is answered with its first MASK or
WRONG.

A DRAFT asks for the masks behind its tokens, too: a MASK or LOST for each. After a TAKE of the
first of them comes no other mask, as that one comes anyway, and the next is then the first. A TAKE
of another token ends the DRAFT: those of its masks that were not sent before the reply never
come."""


class Follower:
    """One grammar and the positions of answers in it."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, asked: dict[str, Any]) -> None:
        """Raises ValueError if the grammar is refused."""
        self._tokenizer = tokenizer
        self._start = self._matcher(source_of(asked))
        self._asked = asked
        self._answers: dict[int, llguidance.LLMatcher] = {}
        self._due: deque[int] = deque()
        # Of DRAFTs: the answer, a copy of its matcher, and the token to take before the mask.
        self._ahead: deque[tuple[int, llguidance.LLMatcher, int]] = deque()
        self._drafts: dict[int, deque[int]] = {}
        """The drafts of an answer that have not been taken."""

    def first(self) -> bytes:
        """Return the reply to the grammar."""
        mask: bytes = b"" if self._start.is_error() else self._start.compute_bitmask()
        if self._start.is_error():
            return said(WRONG, 0, reason_of(self._start.get_error(), self._asked, self._refusal))
        return HEADER.pack(MASK, 0) + mask

    def _matcher(self, source: str) -> llguidance.LLMatcher:
        limits = llguidance.LLParserLimits(verbose_errors=False)
        return llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)

    def _refusal(self, source: str) -> str:
        matcher = self._matcher(source)
        return matcher.get_error() if matcher.is_error() else ""

    def call(self, message: bytes) -> bytes | None:
        """Return the reply, or None if the message has none."""
        kind, index, token = CALL.unpack_from(message)
        if kind == NEW:
            self._answers[index] = self._start.deep_copy()
        elif kind == DROP:
            self._answers.pop(index, None)
            self._end_drafts(index)
        elif kind == DRAFT:
            self._end_drafts(index)
            drafts, copy = array("I", message[CALL.size :]), self._answers[index].deep_copy()
            self._drafts[index] = deque(drafts)
            self._ahead.extend((index, copy, draft) for draft in drafts)
        else:
            matcher = self._answers[index]
            matcher.consume_token(token)
            if matcher.is_error():
                return said(WRONG, index, matcher.get_error())
            drafts_left = self._drafts.get(index)
            if drafts_left and drafts_left[0] == token:
                drafts_left.popleft()
            else:
                self._end_drafts(index)
                self._due.append(index)
            return said(OVER if matcher.is_stopped() else OK, index)
        return None

    def _end_drafts(self, index: int) -> None:
        if self._drafts.pop(index, None):
            self._ahead = deque(one for one in self._ahead if one[0] != index)

    @property
    def is_due(self) -> bool:
        """Return whether there is a mask to compute."""
        return bool(self._due or self._ahead)

    def next_mask(self) -> bytes | None:
        """Return the mask of the answer that has waited longest, or None if that is over by now.
        Those behind drafts come last."""
        if self._due:
            index = self._due.popleft()
            matcher = self._answers.get(index)
            if matcher is None:
                return None
        else:
            index, matcher, draft = self._ahead.popleft()
            if matcher.try_consume_tokens([draft]) != 1:
                return said(LOST, index, "a draft does not follow the grammar")
        mask: bytes = matcher.compute_bitmask()
        if matcher.is_error():
            return said(LOST, index, matcher.get_error())
        return HEADER.pack(MASK, index) + mask


def said(what: int, index: int, reason: str = "") -> bytes:
    if reason.startswith("NoExtension"):
        reason = "no text matches it"
    return HEADER.pack(what, index) + reason.encode()


def serve(connection: Connection, tokenizer: llguidance.LLTokenizer) -> None:
    """Compile the grammar that arrives first, reply with its mask or error, and serve calls."""
    asked = json.loads(connection.recv_bytes())
    bound_memory(MEMORY)
    with at_most(COMPILE_SECONDS):
        try:
            follower = Follower(tokenizer, asked)
            answer = follower.first()
        except ValueError as error:
            connection.send_bytes(said(WRONG, 0, str(error)))
            return
    connection.send_bytes(answer)
    begun = time.process_time()
    allowance = 0.0
    while True:
        message = None
        if not follower.is_due or connection.poll():
            message = connection.recv_bytes()
            allowance += {NEW: ANSWER_SECONDS, TAKE: TOKEN_SECONDS}.get(message[:1], 0.0)
            if message[:1] == DRAFT:
                allowance += TOKEN_SECONDS * (len(message) - CALL.size) / array("I").itemsize
        left = allowance - (time.process_time() - begun)
        with at_most(min(CALL_SECONDS, left)):
            told = follower.next_mask() if message is None else follower.call(message)
        if told is not None:
            connection.send_bytes(told)


def load(message: bytes) -> llguidance.LLTokenizer:
    """Read a tokenizer. Raises ValueError if it cannot follow a grammar."""
    asked = json.loads(message)
    try:
        return llguidance.LLTokenizer(asked["tokenizer"], eos_token=asked["ends"])
    except ValueError as error:
        raise ValueError(f"this base's tokenizer cannot follow a grammar: {error}") from error


if __name__ == "__main__":
    run(load, serve)
