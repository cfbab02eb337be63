"""OpenAI's older form of tools: `functions`, `function_call`, messages of role `function`.

Such a request is converted to one with tools, and its answer is converted back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorry.errors import InvalidRequest


def tools_from(
    functions: Sequence[Mapping[str, Any]], call: object
) -> tuple[list[dict[str, Any]], object]:
    """Return `tools` and `tool_choice`. Raises InvalidRequest."""
    for index, one in enumerate(functions):
        if not isinstance(one.get("name"), str) or not one["name"]:
            raise InvalidRequest(f"functions[{index}].name must be a string", param="functions")
        if not isinstance(one.get("parameters"), dict | None):
            raise InvalidRequest(
                f"functions[{index}].parameters must be a JSON schema", param="functions"
            )
    choice = call
    if isinstance(call, dict):
        choice = {"type": "function", "function": call}
    elif call not in (None, "none", "auto"):
        raise InvalidRequest(
            'function_call must be "none", "auto" or {"name": ...}', param="function_call"
        )
    return [{"type": "function", "function": dict(one)} for one in functions], choice


def messages_from(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert results and calls of functions to results and calls of tools."""
    made: list[dict[str, Any]] = []
    called = 0
    for message in messages:
        one = dict(message)
        call = one.pop("function_call", None)
        if isinstance(call, dict) and one.get("role") == "assistant" and not one.get("tool_calls"):
            called += 1
            one["tool_calls"] = [{"id": _id(called), "type": "function", "function": call}]
        elif call is not None:
            one["function_call"] = call
        if one.get("role") == "function":
            one["role"] = "tool"
            one["tool_call_id"] = _id(called)
        made.append(one)
    return made


def _id(number: int) -> str:
    return f"call{number:05}"


def choice_to(choice: dict[str, Any]) -> dict[str, Any]:
    """Convert a choice of an answer or chunk to the older form, with its first call."""
    made = dict(choice)
    for key in ("message", "delta"):
        said = dict(made.get(key) or {})
        calls = said.pop("tool_calls", None)
        if calls:
            made[key] = {**said, "function_call": calls[0]["function"]}
    if made.get("finish_reason") == "tool_calls":
        made["finish_reason"] = "function_call"
    return made
