"""Compiles the grammars of requests outside the engine's thread.

A grammar may take seconds. Its request waits outside the queue meanwhile and delays no other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from transformers import PreTrainedTokenizerBase

from lorry.constraint import Constraint, Vocabulary
from lorry.engine.grammar import GrammarCompiler
from lorry.engine.restriction import Following, Restriction
from lorry.engine.vocabulary import with_tokens

_COMPILERS = 5
"""Each has a process with its tokenizer."""

_THREADS = 2
"""Slow grammars must not take every core."""


def compilers(
    tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, closed: bool
) -> Callable[[Vocabulary], GrammarCompiler]:
    """Return a function that makes the compiler of a vocabulary over the base's `tokenizer`.

    `vocab_size` is the number of tokens with logits. `closed` is as in `GrammarCompiler`."""

    def compiler_of(vocabulary: Vocabulary) -> GrammarCompiler:
        known, _ = with_tokens(tokenizer.backend_tokenizer, vocabulary.added, vocab_size)
        own = tokenizer.eos_token_id
        ends = vocabulary.ends or frozenset(() if own is None else (own,))
        return GrammarCompiler(known, ends, closed=closed)

    return compiler_of


class Constraints:
    """Any thread may call `begin`."""

    def __init__(
        self, compiler_of: Callable[[Vocabulary], GrammarCompiler], *, wake: Callable[[], None]
    ) -> None:
        """`wake` is called when a constraint is ready or has failed."""
        self._compiler_of = compiler_of
        self._wake = wake
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lorry-grammar")
        self._lock = threading.Lock()
        # For each constraint in progress, the futures of all requests that wait for it.
        self._lines: dict[Constraint, deque[Future[Following]]] = {}
        self._choosing = threading.Lock()
        self._compilers: OrderedDict[Vocabulary, GrammarCompiler] = OrderedDict()

    def begin(self, constraint: Constraint) -> Future[Following]:
        """Begin a new answer. The future raises whatever `GrammarCompiler.compile` raises."""
        future: Future[Following] = Future()
        with self._lock:
            line = self._lines.get(constraint)
            if line is not None:
                # One thread serves all of them: the same grammar is compiled once.
                line.append(future)
                return future
            if constraint.grammar is not None:
                self._lines[constraint] = deque([future])
        if constraint.grammar is None:
            assert constraint.rules is not None
            future.set_result(Restriction(constraint.rules))
        else:
            try:
                self._threads.submit(self._serve, constraint)
            except RuntimeError as error:
                # No thread could be started: an exception here would lose the request.
                with self._lock:
                    line = self._lines.pop(constraint)
                for one in line:
                    one.set_exception(error)
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._choosing:
            for compiler in self._compilers.values():
                compiler.close()

    def _serve(self, constraint: Constraint) -> None:
        """Serve the line of `constraint` until it is empty."""
        while True:
            with self._lock:
                line = self._lines[constraint]
                if not line:
                    del self._lines[constraint]
                    return
                future = line.popleft()
            try:
                future.set_result(self._made(constraint))
            except Exception as error:  # noqa: BLE001 - the waiting requests get it
                # It would fail for the others too, after as long.
                with self._lock:
                    failed = [future, *line]
                    line.clear()
                for one in failed:
                    one.set_exception(error)
            self._wake()

    def _made(self, constraint: Constraint) -> Following:
        assert constraint.grammar is not None
        (grammar,) = self._compiler(constraint.vocabulary).compile(constraint.grammar)
        return grammar if constraint.rules is None else Restriction(constraint.rules, grammar)

    def _compiler(self, vocabulary: Vocabulary) -> GrammarCompiler:
        # A lock of its own: making a compiler takes longer than the engine's thread may wait.
        with self._choosing:
            made = self._compilers.pop(vocabulary, None) or self._compiler_of(vocabulary)
            self._compilers[vocabulary] = made
            if len(self._compilers) > _COMPILERS:
                _, old = self._compilers.popitem(last=False)
                old.close()
            return made
