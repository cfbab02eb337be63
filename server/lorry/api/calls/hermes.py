"""Hermes, and most models after it (Qwen2.5, Qwen3, SmolLM, Granite 4, ...):

    <tool_call>
    {"name": "weather", "arguments": {"city": "Rome"}}
    </tool_call>

Lorry's own prompt also asks for it. Small models forget the tags.
"""

from __future__ import annotations

from lorry.api.calls import plain
from lorry.api.calls.notation import Notation
from lorry.api.calls.values import between

HERMES = Notation(
    "hermes",
    {"<tool_call>": between("</tool_call>")},
    plain.start,
    marks=("<tool_call>", "</tool_call>"),
)
