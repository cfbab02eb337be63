"""Reads JSON as a model writes it, piece by piece: values, and the objects that represent calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from lorry.api.calls.notation import Offered, Read
from lorry.api.calls.source import Reading, Source

Say = Callable[[str], None]

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_BETWEEN = re.compile(r'[^"{}\[\]]+')
_LITERAL = re.compile(r"[-+.\w]+")

_NAME = frozenset({"name", "function"})
_ARGUMENTS = frozenset({"arguments", "parameters"})
_OF_CALLS = _NAME | _ARGUMENTS | {"type", "id"}


def value(source: Source, say: Say) -> Reading[bool]:
    """Read a JSON value. Return False if there is none or the text ends before it does.

    Between brackets only strings are parsed: if a model writes invalid JSON there, its user sees
    what it wrote.
    """
    first = yield from source.peek()
    if first == '"':
        return (yield from string(source, say))
    if first not in ("{", "["):
        literal = yield from source.all(_LITERAL)
        say(literal)
        return bool(literal)
    depth = 0
    while True:
        char = yield from source.peek()
        if char == "":
            return False
        if char == '"':
            if not (yield from string(source, say)):
                return False
            continue
        piece = source.run(_BETWEEN) or source.take()
        say(piece)
        depth += (piece in ("{", "[")) - (piece in ("}", "]"))
        if depth == 0:
            return True


def string(source: Source, say: Say) -> Reading[bool]:
    """Read a JSON string. Line breaks in it, which JSON forbids and models write, are escaped."""
    say(source.take())
    while True:
        char = yield from source.peek()
        if char == "":
            return False
        plain = source.run(_PLAIN)
        if plain:
            say(plain)
            continue
        source.take()
        if char == '"':
            say(char)
            return True
        if char == "\\":
            escaped = yield from source.peek()
            if escaped == "":
                return False
            say(char + source.take())
        else:
            say(json.dumps(char)[1:-1])


def gathered(source: Source, read: Callable[[Source, Say], Reading[bool]]) -> Reading[str | None]:
    """Return everything that `read` reports, at once."""
    parts: list[str] = []
    return "".join(parts) if (yield from read(source, parts.append)) else None


def named(source: Source) -> Reading[str | None]:
    """Read a string and return its text rather than its JSON."""
    text = yield from gathered(source, string)
    return None if text is None else _loaded(text)


def arguments(source: Source, name: str) -> Reading[bool]:
    """Read the arguments of a call of `name`. Return False if there are none; then no call was
    reported."""
    first = yield from source.peek()
    if first == "{":
        source.call(name)
        if (yield from value(source, source.argue)):
            source.done()
        return True
    text = yield from gathered(source, value)
    inner = None if text is None else _object_in(text)
    if inner is None:
        return False
    whole(source, name, inner)
    return True


def whole(source: Source, name: str, text: str) -> None:
    """Report a complete call."""
    source.call(name)
    source.argue(text)
    source.done()


def call(
    source: Source, offered: Offered, *, marked: bool = True, inner: bool = False
) -> Reading[bool]:
    """Read an object that is a call: a name and arguments, in any order, with whatever else a model
    adds (`"type": "function"`, an id), or with such an object as its `function`.

    Without a mark before it, the name must be one of the functions, and arguments must be present.
    """
    source.take()
    name: str | None = None
    early: str | None = None
    told = False
    while True:
        yield from source.blanks()
        char = yield from source.peek()
        if char == ",":
            source.take()
            continue
        if char == "}":
            source.take()
            if told:
                source.settle()
            break
        if char != '"':
            return told
        key = yield from named(source)
        yield from source.blanks()
        if key is None or (yield from source.peek()) != ":":
            return told
        if not (marked or told or key in _OF_CALLS):
            # The answer itself is JSON, which must not be held back.
            return False
        source.take()
        yield from source.blanks()
        first = yield from source.peek()
        if key in _NAME and first == '"' and not told:
            name = yield from named(source)
            if not name or not (marked or offered.knows(name)):
                return False
        elif key == "function" and first == "{" and not told and not inner:
            told = yield from call(source, offered, marked=marked, inner=True)
            if not told:
                return False
        elif key in _ARGUMENTS and name is not None and not told:
            told = yield from arguments(source, name)
            if not told:
                return False
        else:
            skipped = yield from gathered(source, value)
            if skipped is None:
                return told
            early = skipped if key in _ARGUMENTS else early
    if told or name is None or (early is None and not marked):
        return told
    text = _object_in(early or "{}")
    if text is None:
        return False
    whole(source, name, text)
    return True


def calls(source: Source, offered: Offered, *, marked: bool = True) -> Reading[bool]:
    """Read a call, or a list of calls."""
    char = yield from source.peek()
    if char == "{":
        return (yield from call(source, offered, marked=marked))
    if char != "[":
        return False
    source.take()
    return (yield from listed(source, offered, marked=marked))


def listed(source: Source, offered: Offered, *, marked: bool) -> Reading[bool]:
    """Read the calls in a list, behind its opening bracket."""
    any_told = False
    while True:
        yield from source.blanks()
        char = yield from source.peek()
        if char == "{":
            if not (yield from call(source, offered, marked=marked)):
                return False
            any_told = True
        elif char == "," and any_told:
            source.take()
        elif char == "]" and any_told:
            source.take()
            source.settle()
            return True
        else:
            return False


def row(source: Source, offered: Offered, *, marked: bool = True) -> Reading[bool]:
    """Read calls with blanks or `;` between them."""
    told = False
    yield from source.blanks()
    while (yield from source.peek()) in ("{", "["):
        if not (yield from calls(source, offered, marked=marked)):
            return False
        told = True
        yield from close(source, ";")
        yield from close(source)
    return told


def between(*closers: str) -> Read:
    """Return a reader of calls between an opening mark and a closing one, which may be missing."""

    def read(source: Source, offered: Offered) -> Reading[bool]:
        yield from source.blanks()
        if not (yield from calls(source, offered)):
            return False
        yield from close(source, *closers)
        return True

    return read


def close(source: Source, *closers: str) -> Reading[None]:
    """Take the mark behind a call, if it is there, and blanks."""
    yield from source.blanks()
    source.settle()
    if closers:
        yield from source.takes(*closers)
        source.settle()


def quoted(text: str) -> str:
    """Return a text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def json_of(text: str) -> str:
    """Return a text that is JSON as it is, any other as from `quoted`, including NaN and numbers
    that are not finite."""
    try:
        json.dumps(json.loads(text), allow_nan=False)
    except (ValueError, RecursionError):
        return quoted(text)
    return text.strip()


def _object_in(text: str) -> str | None:
    """Return arguments as an object: an object itself, one in a JSON string, or null."""
    inner = _loaded(text) if text.startswith('"') else text
    if inner == "null":
        return "{}"
    return inner if inner is not None and inner.lstrip().startswith("{") else None


def _loaded(text: str) -> str | None:
    try:
        loaded = json.loads(text)
    except ValueError:
        return None
    return loaded if isinstance(loaded, str) else None
