"""Qwen: as Hermes, or (Qwen3-Coder and later) in tags, where a value is as it is:

<tool_call>
<function=weather>
<parameter=city>
Rome
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

import json
import re

from lorry.api.calls import plain
from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import calls, close

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"

_NAME = re.compile(r"[^<>\s]+")


def _in_call(source: Source, offered: Offered) -> Reading[bool]:
    yield from source.blanks()
    if (yield from source.peek()) != "<":
        told = yield from calls(source, offered)
    elif (yield from source.takes(_FUNCTION)) is not None:
        told = yield from _function(source, offered)
    else:
        return False
    if told:
        yield from close(source, _CALL_END)
    return told


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
        made = _json(text, as_text=offered.is_text(name, key))
        source.argue(f"{before}{json.dumps(key, ensure_ascii=False)}: {made}")
        before = ", "
    source.argue("{}" if before == "{" else "}")
    source.done()
    return True


def _json(text: str, *, as_text: bool) -> str:
    """A value: what reads as JSON is that, unless the parameter is a text."""
    if not as_text:
        try:
            json.loads(text)
            return text.strip()
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


def _bare(source: Source, offered: Offered) -> Reading[bool]:
    told = yield from _function(source, offered)
    if told:
        yield from close(source, _CALL_END)
    return told


QWEN = Notation("qwen", {_CALL: _in_call, _FUNCTION: _bare}, plain.start, marks=(_CALL, _CALL_END))
