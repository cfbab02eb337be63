"""Gemma: Python or JSON in a fence (```` ```tool_code ````, as in its documentation), or its own
tokens (FunctionGemma, Gemma 4), with its own quotes around strings:

    <start_function_call>call:weather{city:<escape>Rome<escape>,days:2}<end_function_call>
    <|tool_call>call:weather{city:<|"|>Rome<|"|>,days:2}<tool_call|>
"""

from __future__ import annotations

import re

from lorry.api.calls import plain, python
from lorry.api.calls.notation import Notation, Offered, Read
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import Say, calls, close, json_of, quoted, string

_FENCE, _FENCE_END = "```tool_code", "```"
_CALLS = {
    "<start_function_call>": "<end_function_call>",
    "<|tool_call>": "<tool_call|>",
}
_QUOTES = ("<escape>", '<|"|>')

_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[^\s:,{}\[\]<]+")
_BARE = re.compile(r"[^,{}\[\]<]+")


def _code(source: Source, offered: Offered) -> Reading[bool]:
    yield from source.blanks()
    if (yield from source.peek()) in ("{", "["):
        if not (yield from calls(source, offered)):
            return False
    else:
        while True:
            printed = yield from source.takes("print(")
            if not (yield from python.call(source, offered)):
                return False
            yield from close(source, ")" if printed else ";")
            yield from close(source)
            if (yield from source.peek()) == "`":
                break
    yield from close(source, _FENCE_END)
    return True


def _own(closer: str) -> Read:
    def read(source: Source, offered: Offered) -> Reading[bool]:
        yield from source.blanks()
        if (yield from source.takes("call:")) is None:
            return False
        name = yield from source.all(_NAME)
        if not name or (yield from source.peek()) != "{":
            return False
        source.call(name)
        if (yield from _value(source, source.argue)):
            source.done()
            yield from close(source, closer)
        return True

    return read


def _value(source: Source, say: Say, depth: int = 0) -> Reading[bool]:
    """Read a value and report it as JSON."""
    char = yield from source.peek()
    if char == '"':
        return (yield from string(source, say))
    if char == "<":
        quote = yield from source.takes(*_QUOTES)
        parts: list[str] = []
        if quote is None or not (yield from source.until(quote, parts.append)):
            return False
        say(quoted("".join(parts)))
        return True
    if char not in ("{", "["):
        word = (yield from source.all(_BARE)).strip()
        say(json_of(word))
        return bool(word)
    if depth == python.MAX_DEPTH:
        return False
    say(source.take())
    first = True
    while True:
        yield from source.blanks()
        following = yield from source.peek()
        if following == ("}" if char == "{" else "]"):
            say(source.take())
            return True
        if following == "," and not first:
            source.take()
            continue
        if following == "":
            return False
        say("" if first else ", ")
        first = False
        if char == "{":
            quote = yield from source.takes(*_QUOTES)
            key = (yield from source.all(_KEY)).strip('"')
            if quote is not None:
                yield from source.takes(quote)
            yield from source.blanks()
            if not key or (yield from source.takes(":")) is None:
                return False
            say(f"{quoted(key)}: ")
            yield from source.blanks()
        if not (yield from _value(source, say, depth + 1)):
            return False


GEMMA = Notation(
    "gemma",
    {_FENCE: _code, **{opener: _own(closer) for opener, closer in _CALLS.items()}},
    plain.start,
    marks=(*_CALLS, *_CALLS.values(), *_QUOTES),
)
