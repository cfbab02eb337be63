"""Converts GBNF, llama.cpp's grammar notation, to Lark's notation for llguidance."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from llguidance.gbnf_to_lark import GrammarParser, gbnf_to_lark

_ROOT = re.compile(r"^([ \t]*)root([ \t]*::=)", re.MULTILINE)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)


def lark_of(text: str) -> str:
    """Return the grammar in Lark's notation. Raises ValueError."""
    text = _ESCAPE.sub(_character, text)
    with _refusals():
        # Its errors name a position in the text that the client sent.
        GrammarParser().parse(text)
    # The converter merges a rule without recursion into one automaton, except the root. Left
    # separate, the root's parts would each match greedily, and `[a-z]* "x"` would never end.
    inner = "inner-root"
    while inner in text:
        inner += "-0"
    text, roots = _ROOT.subn(rf"\g<1>{inner}\2", text)
    if roots:
        text += f"\nroot ::= {inner}\n"
    with _refusals():
        return str(gbnf_to_lark(text))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # its own errors are plain `Exception`s
        raise ValueError(str(error)) from error


def _character(escape: re.Match[str]) -> str:
    """Restore the leading zeros of a code point, which the converter drops."""
    digits = escape[1] or escape[2]
    if digits is None:
        return escape[0]
    code = int(digits, 16)
    if code < 0x80:
        return f"\\x{code:02x}"
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError(f"{escape[0]} is not a character")
    return chr(code)
