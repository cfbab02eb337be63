"""Llama 3: JSON alone or behind `<|python_tag|>`, several with `;` between them, or
`<function=weather>{"city": "Rome"}</function>`; Llama 3.2 and 4 also as Python."""

from __future__ import annotations

import re

from lorry.api.calls import plain, python
from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Reading, Source
from lorry.api.calls.values import arguments, close, row

_TAG, _PYTHON, _PYTHON_END = "<|python_tag|>", "<|python_start|>", "<|python_end|>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"

_NAME = re.compile(r"[^<>\s]+")


def _python(source: Source, offered: Offered) -> Reading[bool]:
    told = yield from python.start(source, offered)
    if told:
        yield from close(source, _PYTHON_END)
    return told


def _function(source: Source, offered: Offered) -> Reading[bool]:
    name = yield from source.all(_NAME)
    if not name or (yield from source.takes(">")) is None:
        return False
    yield from source.blanks()
    told = yield from arguments(source, name)
    if told:
        yield from close(source, _FUNCTION_END)
    return told


def _start(source: Source, offered: Offered) -> Reading[bool]:
    """Read a list of objects, or of calls as Python."""
    if (yield from source.peek()) != "[":
        return (yield from plain.start(source, offered))
    return (yield from python.start(source, offered))


LLAMA = Notation(
    "llama3",
    {_TAG: row, _PYTHON: _python, _FUNCTION: _function},
    _start,
    marks=(_TAG, _PYTHON, _PYTHON_END),
)
PYTHONIC = Notation("pythonic", {_PYTHON: _python}, python.start, marks=(_PYTHON, _PYTHON_END))
