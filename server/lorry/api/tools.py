"""Tools in chat: which may be called, the grammar that forces a call, calls in the answer.

A forced call (`tool_choice` "required" or a function) is made by a grammar, so it works
with every base. A free one ("auto") is found where the model writes it as Hermes, Qwen
and SmolLM do: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; any other
notation stays in the text.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorry.api.grammars import schema_text
from lorry.engine.grammar import Grammar, GrammarKind
from lorry.engine.text import StopStrings
from lorry.errors import InvalidRequest

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request says of tools, resolved."""

    shown: list[dict[str, Any]] | None
    """For the template; None: there are none, or none may be called."""
    grammar: Grammar | None = None
    """Forces the answer to be one call."""
    name: str | None = None
    """The one function that must be called: the answer is its arguments."""

    @property
    def forced(self) -> bool:
        return self.grammar is not None


def tools_of(tools: Sequence[Mapping[str, Any]] | None, choice: object) -> Tools:
    """Raises InvalidRequest."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice without tools; send both", param="tool_choice")
        return Tools(None)
    schemas = {}
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InvalidRequest(
                f'tools[{index}] must be {{"type": "function", "function": {{...}}}}', param="tools"
            )
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"tools[{index}].function.name must be a text", param="tools")
        if schema is not None and not isinstance(schema, dict):
            raise InvalidRequest(
                f"tools[{index}].function.parameters must be a JSON schema", param="tools"
            )
        schemas[name] = schema or {"type": "object", "properties": {}}
    shown = [dict(tool) for tool in tools]
    if choice in (None, "auto"):
        return Tools(shown)
    if choice == "none":
        return Tools(None)
    if choice == "required":
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": schema},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, schema in schemas.items()
        ]
        one = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return Tools(shown, Grammar(GrammarKind.JSON, schema_text(one, "tools"), "tools"))
    function = choice.get("function") if isinstance(choice, dict) else None
    wanted = function.get("name") if isinstance(function, dict) else None
    if not isinstance(wanted, str) or wanted not in schemas:
        raise InvalidRequest(
            'tool_choice must be "none", "auto", "required" or a function of tools: '
            '{"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        )
    return Tools(
        shown, Grammar(GrammarKind.JSON, schema_text(schemas[wanted], "tools"), "tools"), wanted
    )


class CallReader:
    """Parts one answer, piece by piece, into text to show and calls to make."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._marker = StopStrings((OPEN,), keep=False)
        self._rest = ""
        """From the first marker on, or the whole answer where a call is forced."""

    def push(self, text: str) -> str:
        """What is certain to be text."""
        if self._tools.shown is None:
            return text
        self._rest += text
        if self._tools.forced or self._marker.hit is not None:
            return ""
        shown = self._marker.push(text)
        self._rest = self._rest[len(shown) :]
        return shown

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls. What does not parse as calls is text."""
        rest, self._rest = self._rest, ""
        if self._tools.forced:
            calls = _parse(rest, self._tools.name)
            return ("", [calls]) if calls is not None else (rest, [])
        if self._marker.hit is None:
            return rest, []
        calls_found = []
        for part in rest.split(OPEN)[1:]:
            call = _parse(part.partition(CLOSE)[0], None)
            if call is None:
                return rest, []
            calls_found.append(call)
        return "", calls_found


def _parse(text: str, name: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if name is None:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        name, value = value["name"], value.get("arguments", value.get("parameters", {}))
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(value, ensure_ascii=False)},
    }
