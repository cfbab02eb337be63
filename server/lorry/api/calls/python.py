"""Calls as Python: `[weather(city="Rome", days=2)]`, or one without brackets.

Literals are converted to JSON as they come. Nothing is run, and no other Python is understood.
"""

from __future__ import annotations

import re

from lorry.api.calls.notation import Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import Say, close, listed, quoted

_NAME = re.compile(r"[\w.]+")
_NUMBER = re.compile(r"[-+.\w]+")
_WORDS = {"True": "true", "False": "false", "None": "null"}
_JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\n": ""}

MAX_DEPTH = 32
"""Nested brackets."""


def start(source: Source, offered: Offered) -> Reading[bool]:
    """Read a call, or a list of calls, of known functions."""
    if (yield from source.peek()) != "[":
        return (yield from call(source, offered))
    source.take()
    yield from source.blanks()
    if (yield from source.peek()) == "{":
        # The list contains JSON after all.
        return (yield from listed(source, offered, marked=False))
    while True:
        if not (yield from call(source, offered)):
            return False
        yield from source.blanks()
        mark = yield from source.takes(",", "]")
        source.settle()
        if mark != ",":
            return True
        yield from close(source)


def call(source: Source, offered: Offered) -> Reading[bool]:
    """Read a function's name, `(`, arguments by name or in order, `)`."""
    name = yield from source.all(_NAME)
    yield from source.blanks()
    if not offered.knows(name) or (yield from source.takes("(")) is None:
        return False
    source.call(name)
    names = offered.parameters(name)
    before = "{"
    while True:
        yield from source.blanks()
        char = yield from source.peek()
        if char == ")":
            source.take()
            break
        if char == "," and before != "{":
            source.take()
            continue
        said: list[str] = []
        key = ""
        if char not in ('"', "'", "[", "{", "("):
            word = yield from source.all(_NUMBER)
            yield from source.blanks()
            if (yield from source.takes("=")) is not None:
                key = word
                yield from source.blanks()
            elif not _literal(word, said.append):
                return True
        if not said and not (yield from literal(source, said.append)):
            return True
        if not key:
            if not names:
                return True
            key = names[0]
        names = [one for one in names if one != key]
        source.argue(f"{before}{quoted(key)}: {''.join(said)}")
        before = ", "
    source.argue("{}" if before == "{" else "}")
    source.done()
    return True


def literal(source: Source, say: Say, depth: int = 0) -> Reading[bool]:
    """Convert a Python value to JSON. Return False if JSON has no such value."""
    char = yield from source.peek()
    if char in ('"', "'"):
        text = yield from _string(source)
        if text is not None:
            say(quoted(text))
        return text is not None
    if char not in ("[", "(", "{"):
        return _literal((yield from source.all(_NUMBER)), say)
    if depth == MAX_DEPTH:
        return False
    source.take()
    end = {"[": "]", "(": ")", "{": "}"}[char]
    parts: list[str] = []
    while True:
        yield from source.blanks()
        following = yield from source.peek()
        if following == end:
            source.take()
            opened, closed = ("{", "}") if char == "{" else ("[", "]")
            say(f"{opened}{', '.join(parts)}{closed}")
            return True
        if following == "," and parts:
            source.take()
            continue
        said: list[str] = []
        if not (yield from literal(source, said.append, depth + 1)):
            return False
        if char == "{":
            yield from source.blanks()
            if (yield from source.takes(":")) is None or not said[0].startswith('"'):
                return False
            yield from source.blanks()
            said.append(": ")
            if not (yield from literal(source, said.append, depth + 1)):
                return False
        parts.append("".join(said))


def _literal(word: str, say: Say) -> bool:
    """Convert a word or a number."""
    made = _WORDS.get(word) or (word if _JSON_NUMBER.fullmatch(word) else None)
    if made is not None:
        say(made)
    return made is not None


def _string(source: Source) -> Reading[str | None]:
    quote = source.take()
    made: list[str] = []
    while True:
        char = yield from source.peek()
        if char == "":
            return None
        source.take()
        if char == quote:
            return "".join(made)
        if char == "\\":
            escaped = yield from source.peek()
            if escaped == "":
                return None
            source.take()
            known = escaped in ("\\", "'", '"')
            char = _ESCAPES.get(escaped, escaped if known else "\\" + escaped)
        made.append(char)
