"""Answers that must match a JSON schema or a regular expression, through llguidance.

Compiling and the tokenizer's trie are slow (the trie takes about a second, once), so
`GrammarCompiler.compile` blocks and belongs in a thread. What it gives is a
`lorry.core.Constraint`, touched by the engine thread only.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import llguidance
import llguidance.hf
from transformers import PreTrainedTokenizerBase

from lorry.core import Constraint
from lorry.errors import GenerationFailed, InvalidRequest, UnsupportedParameter

_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,20}"
"""Bounded: a model that likes blanks would otherwise fill the whole answer with them."""


class GrammarKind(StrEnum):
    JSON = "json"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match, uncompiled."""

    kind: GrammarKind
    text: str
    """A JSON schema as JSON, or a regular expression in Rust's syntax."""
    param: str
    """The request's field that gave it, for error messages."""


class TokenConstraint:
    """One request's place in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> Sequence[int]:
        """The next token's mask, 32 tokens a word; as wide as the tokenizer's vocabulary,
        past which a model's may be padded. Raises GenerationFailed."""
        mask: bytes = self._matcher.compute_bitmask()
        self._check()
        return memoryview(mask).cast("I")

    def advance(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationFailed(
                f"the grammar could not be followed: {_first_line(self._matcher.get_error())}"
            )


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Thread-safe.

    llguidance's view of the tokenizer is built at the first grammar, once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: frozenset[int]) -> None:
        self._source = tokenizer
        self._eos_token_ids = sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> Constraint:
        """Blocks. Raises InvalidRequest where the schema or the expression is wrong, and
        UnsupportedParameter where this tokenizer cannot be followed."""
        match grammar.kind:
            case GrammarKind.JSON:
                try:
                    source = llguidance.LLMatcher.grammar_from_json_schema(
                        grammar.text, overrides={"whitespace_pattern": _WHITESPACE}
                    )
                except ValueError as error:
                    raise _invalid(grammar, str(error)) from error
            case GrammarKind.REGEX:
                source = llguidance.LLMatcher.grammar_from_regex(grammar.text)
        matcher = llguidance.LLMatcher(self._ready(grammar), source, log_level=0)
        if matcher.is_error():
            raise _invalid(grammar, matcher.get_error())
        return TokenConstraint(matcher)

    def _ready(self, grammar: Grammar) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = llguidance.hf.from_tokenizer(
                        self._source, eos_token=self._eos_token_ids or None
                    )
                except ValueError as error:
                    raise UnsupportedParameter(
                        f"{grammar.param}: this base's tokenizer cannot follow a grammar: {error}",
                        param=grammar.param,
                    ) from error
            return self._tokenizer


def _invalid(grammar: Grammar, reason: str) -> InvalidRequest:
    what = "JSON schema" if grammar.kind is GrammarKind.JSON else "regular expression"
    return InvalidRequest(
        f"{grammar.param}: this {what} cannot be served: {_first_line(reason)}",
        param=grammar.param,
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no reason given"
