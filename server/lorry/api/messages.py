"""Chat messages as a template wants them: texts joined, arguments parsed, roles known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorry.errors import InvalidRequest, UnsupportedParameter

_ROLES = ("system", "developer", "user", "assistant", "tool")

_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
"""Others are refused by name, except null ones, which clients send."""


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Raises InvalidRequest, UnsupportedParameter."""
    if not messages:
        raise InvalidRequest("messages is empty; send at least one", param="messages")
    return [_message(one, f"messages[{index}]") for index, one in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {json.dumps(role)[:80]}",
            param="messages",
        )
    for key, value in message.items():
        if key not in _KEYS and value is not None:
            raise UnsupportedParameter(f"{where}.{key[:80]} is not served", param="messages")
    calls = message.get("tool_calls")
    content = _text(message.get("content"), f"{where}.content", needed=not calls)
    # Templates know the older name for instructions.
    result: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content}
    for key in ("name", "tool_call_id"):
        value = message.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise InvalidRequest(f"{where}.{key} must be a text", param="messages")
            result[key] = value
    if calls:
        result["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    return result


def _text(content: object, where: str, *, needed: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        if needed:
            raise InvalidRequest(f"{where} is required", param="messages")
        return ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of parts", param="messages")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text"):
            raise UnsupportedParameter(
                f"{where}[{index}]: parts of type {json.dumps(kind)[:80]} are not served, "
                "only text",
                param="messages",
            )
        text = part.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{index}].text must be a text", param="messages")
        texts.append(text)
    return "".join(texts)


def _calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Tool calls of an earlier answer. Templates want the arguments as an object."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list", param="messages")
    result = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f"{where}[{index}].function must have a name and arguments", param="messages"
            )
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(
                    f"{where}[{index}].function.arguments is not JSON: {error}", param="messages"
                ) from error
        result.append(
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return result
