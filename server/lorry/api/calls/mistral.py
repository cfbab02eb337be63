"""Mistral: `[TOOL_CALLS]` before a list of objects, or before each
`weather[ARGS]{"city": "Rome"}`, with `[CALL_ID]` and an id in between, or without `[ARGS]`."""

from __future__ import annotations

import re

from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import arguments, calls, close

_CALLS, _ARGUMENTS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"

_NAME = re.compile(r"[\w.-]+")


def _read(source: Source, offered: Offered) -> Reading[bool]:
    yield from source.blanks()
    if (yield from source.peek()) in ("{", "["):
        told = yield from calls(source, offered)
    else:
        told = yield from _named(source)
    if told:
        yield from close(source)
    return told


def _named(source: Source) -> Reading[bool]:
    name = yield from source.all(_NAME)
    if not name:
        return False
    if (yield from source.takes(_ID, _ARGUMENTS)) == _ID:
        yield from source.all(_NAME)
        yield from source.takes(_ARGUMENTS)
    yield from source.blanks()
    return (yield from arguments(source, name))


MISTRAL = Notation("mistral", {_CALLS: _read}, marks=(_CALLS, _ARGUMENTS, _ID))
