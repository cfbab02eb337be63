"""Answers that must match a JSON schema, a regular expression or a grammar, through llguidance.

Every grammar has its own process with limits on time and memory (`grammar_process`), so that no
grammar can stop the server. Compiling is slow: `GrammarCompiler.compile` blocks and must run in a
thread (`lorry.engine.constraints`). Only the engine's thread touches its results.
"""

from __future__ import annotations

import json
import threading
import weakref
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from copy import copy
from multiprocessing.connection import Connection

from tokenizers import Tokenizer

from lorry.constraint import MAX_GRAMMAR, Grammar, GrammarKind
from lorry.engine.grammar_process import (
    CALL,
    COMPILE_SECONDS,
    DRAFT,
    DROP,
    HEADER,
    LOST,
    MASK,
    MEMORY,
    NEW,
    OVER,
    TAKE,
    WRONG,
)
from lorry.errors import GenerationFailed, InvalidRequest, QueueFull, UnsupportedParameter
from lorry.forks import ForkFailed, Forks

MAX_LIVE = 64
"""The most different grammars at once: each is a process."""

_KEPT = 16
"""Compiled grammars that are kept after their last answer."""

_SHARED = 32
"""The most answers that one process follows: they share its memory."""

_PATIENCE, _CALL_PATIENCE = 120.0, 30.0
"""Seconds, for a grammar and for a token. The processes limit their own processor time; this is
for a process that the machine does not run at all."""


Said = tuple[int, memoryview]
"""MASK and a mask, or another code and a reason."""


class Compiled:
    """A compiled grammar. It owns the grammar's process, which ends with this object."""

    def __init__(self, connection: Connection, mask: memoryview) -> None:
        self.mask = mask
        """The mask of an answer's first token."""
        self._connection = connection
        self._lock = threading.Lock()
        self._begun = 0
        self._live: set[int] = set()
        """The answers that are followed, as far as the process knows."""
        self._came: dict[int, deque[Said]] = {}
        """MASK or LOST for some of them, read while waiting for something else."""
        # Answers that are over, which the process does not know yet. The last reference to an
        # answer may be dropped at any moment, even in the midst of a call.
        self._dropped: deque[int] = deque()
        self.lost = False
        """True if the process has ended: its grammar took too much, or it was killed."""

    @property
    def answers(self) -> int:
        """The number of answers that are followed now."""
        return len(self._live) - len(self._dropped)

    def begin(self) -> int:
        """Return the number of a new answer."""
        with self._lock:
            index = self._begun
            self._begun += 1
            self._send(NEW, index)
            self._live.add(index)
            return index

    def drop(self, index: int) -> None:
        self._dropped.append(index)

    def draft(self, index: int, tokens: Sequence[int]) -> None:
        """Ask for the masks behind `tokens`, too."""
        with self._lock:
            self._send(DRAFT, index, more=array("I", tokens).tobytes())

    def take(self, index: int, token: int, *, drafted: bool) -> Said:
        """`drafted`: it is the first of the drafts that are left. Otherwise those are over.

        Return OK, OVER, or WRONG and a reason. Raises EOFError if the process has ended."""
        with self._lock:
            self._send(TAKE, index, token)
            while True:
                what, of, rest = self._read()
                if what not in (MASK, LOST):
                    assert of == index, "TAKEs are answered in order"
                    if not drafted:
                        self._came.pop(index, None)
                    return what, rest
                self._keep(what, of, rest)

    def next_mask(self, index: int) -> Said:
        """Return MASK and the mask, or LOST and a reason. Call it after a TAKE that was not WRONG,
        and once for each token of a DRAFT. Raises EOFError."""
        with self._lock:
            while not self._came.get(index):
                self._keep(*self._read())
            return self._came[index].popleft()

    def _read(self) -> tuple[int, int, memoryview]:
        try:
            if self.lost:
                raise EOFError
            return _received(self._connection, _CALL_PATIENCE)
        except EOFError:
            self.lost = True
            raise

    def _keep(self, what: int, index: int, rest: memoryview) -> None:
        # Nobody asks for an answer that is over.
        if index in self._live:
            self._came.setdefault(index, deque()).append((what, rest))

    def _send(self, kind: bytes, index: int, token: int = 0, more: bytes = b"") -> None:
        try:
            while self._dropped:
                over = self._dropped.popleft()
                self._live.discard(over)
                self._came.pop(over, None)
                self._connection.send_bytes(CALL.pack(DROP, over, 0))
            self._connection.send_bytes(CALL.pack(kind, index, token) + more)
        except OSError:
            self.lost = True


class TokenConstraint:
    """One answer's position in its grammar."""

    def __init__(self, compiled: Compiled, grammar: Grammar) -> None:
        self._compiled = compiled
        self._grammar = grammar
        self._index = compiled.begin()
        self._masks: deque[Said] = deque([(MASK, compiled.mask)])
        """Those of the next tokens that the process has computed."""
        self._drafts: deque[int] = deque()
        """The drafts that have not been taken."""
        self._finished = False

    def __del__(self) -> None:
        self._compiled.drop(self._index)

    def look_ahead(self, drafts: Sequence[int]) -> None:
        """Begin to compute the masks behind `drafts`, which may be the next tokens."""
        if self._drafts:
            # The masks of the last ones come all the same.
            self._await(len(self._drafts))
            self._masks = deque([self._masks[0]])
        self._drafts = deque(drafts)
        self._compiled.draft(self._index, drafts)

    def allowed(self, place: int = 0) -> Sequence[int]:
        """Return the mask of the token behind the first `place` drafts, 32 tokens per word, as wide
        as the tokenizer's vocabulary, which may be smaller than the model's. Waits until it is
        computed. Raises InvalidRequest if the grammar takes too much to follow, or if the drafts do
        not follow it."""
        self._await(place)
        what, mask = self._masks[place]
        if what == LOST:
            raise self._unfollowed(mask)
        return mask

    def _await(self, place: int) -> None:
        while len(self._masks) <= place:
            try:
                what, rest = self._compiled.next_mask(self._index)
            except EOFError:
                raise self._unfollowed(None) from None
            self._masks.append((what, rest.cast("I") if what == MASK else rest))

    def advance(self, token_id: int) -> None:
        """Take a token. Raises GenerationFailed if it is outside the mask, and InvalidRequest if
        the grammar takes too much to follow."""
        mask, word = self.allowed(), token_id // 32
        if not (word < len(mask) and mask[word] >> token_id % 32 & 1):
            raise GenerationFailed(f"token {token_id} does not follow the grammar")
        drafted = bool(self._drafts) and self._drafts[0] == token_id
        try:
            status, rest = self._compiled.take(self._index, token_id, drafted=drafted)
        except EOFError:
            raise self._unfollowed(None) from None
        if status == WRONG:
            raise self._unfollowed(rest)
        self._finished = status == OVER
        if drafted:
            self._drafts.popleft()
            self._masks.popleft()
        else:
            self._drafts.clear()
            self._masks.clear()

    def finished(self) -> bool:
        return self._finished

    def _unfollowed(self, said: memoryview | None) -> InvalidRequest:
        """`said` is the process's reason, or None if it has ended."""
        reason = "it takes too much time or memory"
        if said is not None:
            reason = _first_line(bytes(said).decode(errors="replace"))
        return InvalidRequest(
            f"{self._grammar.what} could not be followed to the end: {reason}; make it simpler",
            param=self._grammar.param,
        )


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Thread-safe.

    The process that holds the tokenizer starts at the first grammar. The grammars used last stay
    compiled.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ends: frozenset[int],
        *,
        closed: bool = True,
    ) -> None:
        """`ends` are the tokens that end an answer. `closed`: objects of a schema that are left
        open are closed."""
        self._closed = closed
        self._host = Forks(
            "lorry.engine.grammar_process",
            lambda: _described(tokenizer, sorted(ends)),
            what="grammars",
        )
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Compiled] = OrderedDict()
        self._live: weakref.WeakSet[Compiled] = weakref.WeakSet()

    def compile(self, grammar: Grammar, count: int = 1) -> list[TokenConstraint]:
        """Compile a grammar once and return one constraint for each of `count` answers. Blocks.

        Raises:
            InvalidRequest: the schema or the expression is wrong, too large or too slow.
            UnsupportedParameter: grammars cannot follow this tokenizer.
            QueueFull: too many other grammars are in use.
        """
        if len(grammar.text) > MAX_GRAMMAR:
            raise InvalidRequest(
                f"{grammar.what} has {len(grammar.text)} characters, the most is {MAX_GRAMMAR}",
                param=grammar.param,
            )
        compiled = self._compiled(grammar)
        return [TokenConstraint(compiled, grammar) for _ in range(count)]

    def close(self) -> None:
        """End the process that holds the tokenizer; the next grammar starts it again."""
        self._host.close()

    def _compiled(self, grammar: Grammar) -> Compiled:
        key = self._asked(grammar)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and not kept.lost and kept.answers < _SHARED:
                self._kept.move_to_end(key)
                return kept
            if len(self._live) >= MAX_LIVE:
                # Unused grammars make room first.
                self._kept.clear()
            if len(self._live) >= MAX_LIVE:
                raise QueueFull(
                    f"{grammar.param}: {MAX_LIVE} different grammars are in use; try again later",
                    retry_after=1,
                )
        made = self._make(grammar, key)
        with self._lock:
            self._live.add(made)
            self._kept[key] = made
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def _asked(self, grammar: Grammar) -> bytes:
        """Return the message to the grammar's process, which identifies the grammar."""
        asked: dict[str, object] = {"kind": grammar.kind.value, "text": grammar.text}
        if grammar.kind is GrammarKind.JSON:
            asked["closed"] = self._closed if grammar.closed is None else grammar.closed
            asked["whitespace"] = grammar.whitespace
        return json.dumps(asked).encode()

    def _make(self, grammar: Grammar, asked: bytes) -> Compiled:
        try:
            connection = self._host.connect()
        except ForkFailed as error:
            raise UnsupportedParameter(f"{grammar.param}: {error}", param=grammar.param) from error
        try:
            connection.send_bytes(asked)
            status, _, rest = _received(connection, _PATIENCE)
        except (EOFError, OSError):
            raise InvalidRequest(
                f"{grammar.what} takes more than {COMPILE_SECONDS:g} s of processor time or "
                f"{MEMORY >> 20} MiB to compile; make it simpler",
                param=grammar.param,
            ) from None
        if status == WRONG:
            reason = _first_line(bytes(rest).decode(errors="replace"))
            raise InvalidRequest(f"{grammar.what} cannot be served: {reason}", param=grammar.param)
        return Compiled(connection, rest.cast("I"))


def _described(tokenizer: Tokenizer, ends: list[int]) -> bytes:
    # Like llguidance.hf: with tokens that only the configuration has, without padding and
    # truncation.
    backend = copy(tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return json.dumps({"tokenizer": backend.to_str(), "ends": ends or None}).encode()


def _received(connection: Connection, seconds: float) -> tuple[int, int, memoryview]:
    """Return the kind of a message, its answer, and a mask or a reason. Raises EOFError if the
    process has ended."""
    try:
        if not connection.poll(seconds):
            raise EOFError
        answer = connection.recv_bytes()
    except OSError:
        raise EOFError from None
    what, index = HEADER.unpack_from(answer)
    return what, index, memoryview(answer)[HEADER.size :]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:500] if text.strip() else "no reason given"
