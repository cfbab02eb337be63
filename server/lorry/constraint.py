"""What an answer's tokens must follow, as plain data. The engine compiles it.

A grammar says what the whole answer must match. Rules say which tokens may not come, whatever
the answer says.
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
    """A JSON list of texts."""
    LARK = "lark"
    """Lark's notation, as llguidance has it."""
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
    """The request's field that gave it, for error messages."""
    closed: bool | None = None
    """Of a schema, whether its objects are closed unless it says otherwise; None: as the
    server has it."""
    whitespace: str | None = None
    """Of a schema, an expression for what may stand between two parts; empty for nothing.
    None: one space where objects are closed, some of any where they are not."""

    @property
    def what(self) -> str:
        return f"{self.param}: this {_WHAT[self.kind]}"


@dataclass(frozen=True, slots=True)
class Rules:
    """Tokens that may not come."""

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


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens over which a grammar is followed: the base's, with changes."""

    added: tuple[AddedToken, ...] = ()
    """An adapter's own, in place of the base's of the same numbers."""
    ends: frozenset[int] = frozenset()
    """Tokens that end an answer; empty: the tokenizer's own."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One answer's: a grammar, rules or both."""

    grammar: Grammar | None = None
    rules: Rules | None = None
    vocabulary: Vocabulary = Vocabulary()
    """Of the grammar."""
