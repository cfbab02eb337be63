"""Qwen: like Hermes, or (Qwen3-Coder and later) in tags, with unquoted values:

<tool_call> <function=weather> <parameter=city> Rome </parameter> </function> </tool_call>
"""

from __future__ import annotations

import re

from lorry.api.calls import plain
from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import between, close, json_of, quoted

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"

_NAME = re.compile(r"[^<>\s]+")


def _in_call(source: Source, offered: Offered) -> Reading[bool]:
    yield from source.blanks()
    if (yield from source.takes(_FUNCTION)) is not None:
        return (yield from _bare(source, offered))
    return (yield from between(_CALL_END)(source, offered))


def _function(source: Source, offered: Offered) -> Reading[bool]:
    name = yield from source.all(_NAME)
    if not name or (yield from source.peek()) != ">":
        return False
    source.take()
    source.call(name)
    before = "{"
    while True:
        yield from source.blanks()
        mark = yield from source.takes(_PARAMETER, _FUNCTION_END)
        if mark is None:
            return True
        if mark == _FUNCTION_END:
            break
        key = yield from source.all(_NAME)
        yield from source.takes(">")
        parts: list[str] = []
        if not (yield from source.until(_PARAMETER_END, parts.append)):
            return True
        text = "".join(parts).removeprefix("\n").removesuffix("\n")
        made = quoted(text) if offered.is_text(name, key) else json_of(text)
        source.argue(f"{before}{quoted(key)}: {made}")
        before = ", "
    source.argue("{}" if before == "{" else "}")
    source.done()
    return True


def _bare(source: Source, offered: Offered) -> Reading[bool]:
    told = yield from _function(source, offered)
    if told:
        yield from close(source, _CALL_END)
    return told


QWEN = Notation("qwen", {_CALL: _in_call, _FUNCTION: _bare}, plain.start, marks=(_CALL, _CALL_END))
