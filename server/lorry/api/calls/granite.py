"""Granite: `<|tool_call|>` (3.0, 3.1) or `<tool_call>` (3.2 and later) before a list of objects, or
`<function_call>` before one (Granite 20B)."""

from __future__ import annotations

from lorry.api.calls import plain
from lorry.api.calls.notation import Notation
from lorry.api.calls.values import between

_CALL, _TAG, _TAG_END, _OLD = "<|tool_call|>", "<tool_call>", "</tool_call>", "<function_call>"

GRANITE = Notation(
    "granite",
    {_CALL: between(), _TAG: between(_TAG_END), _OLD: between()},
    plain.start,
    marks=(_CALL, _TAG, _TAG_END, _OLD),
)
