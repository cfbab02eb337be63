"""Constraints on an answer's tokens, as plain data. The engine compiles them.

The whole answer must match a grammar. Rules forbid tokens whatever the answer is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lorry_adapters.lora.words import AddedToken

MAX_GRAMMAR = 512 << 10
"""Characters of a schema or an expression."""


class GrammarKind(StrEnum):
    JSON = "json"
    """A JSON schema, as JSON."""
    REGEX = "regex"
    """A regular expression in Rust's syntax."""
    CHOICE = "choice"
    """A JSON list of strings."""
    LARK = "lark"
    """Lark's notation in llguidance's variant."""
    GBNF = "gbnf"
    """llama.cpp's notation."""


_WHAT = {
    GrammarKind.JSON: "JSON schema",
    GrammarKind.REGEX: "regular expression",
    GrammarKind.CHOICE: "list of choices",
    GrammarKind.LARK: "Lark grammar",
    GrammarKind.GBNF: "GBNF grammar",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    kind: GrammarKind
    text: str
    param: str
    """The request's field with the grammar, for error messages."""
    closed: bool | None = None
    """For a schema: whether its objects are closed unless it says otherwise. None takes the
    server's setting."""
    whitespace: str | None = None
    """For a schema: a regular expression for whitespace between two parts, empty for none. None
    allows one space if objects are closed, and some of any kind otherwise."""

    @property
    def what(self) -> str:
        return f"{self.param}: this {_WHAT[self.kind]}"


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules about tokens that may not come."""

    vocab_size: int
    least: int = 0
    """The number of tokens that must come before one of `ends` may."""
    ends: frozenset[int] = frozenset()
    only: frozenset[int] | None = None
    """Only these may come."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that must not be completed."""
    param: str = ""
    """The request's field, for error messages."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a grammar: the base's, with changes."""

    added: tuple[AddedToken, ...] = ()
    """An adapter's own tokens, which replace the base's with the same ids."""
    ends: frozenset[int] = frozenset()
    """Tokens that end an answer; empty for the tokenizer's own."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The constraint on one answer: a grammar, rules or both."""

    grammar: Grammar | None = None
    rules: Rules | None = None
    vocabulary: Vocabulary = Vocabulary()
    """The grammar's vocabulary."""
