"""Phi-4: `functools[{"name": "weather", "arguments": {"city": "Rome"}}]`, or the list between
`<|tool_call|>` and `<|/tool_call|>`."""

from __future__ import annotations

from lorry.api.calls import plain
from lorry.api.calls.notation import Notation
from lorry.api.calls.values import between

_CALL, _CALL_END = "<|tool_call|>", "<|/tool_call|>"

PHI = Notation(
    "phi",
    {"functools": between(), _CALL: between(_CALL_END)},
    plain.start,
    marks=(_CALL, _CALL_END),
)
