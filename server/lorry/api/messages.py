"""Checks chat messages: contents are strings or text parts, calls have JSON, roles are known.

`lorry.api.chat_template` converts them to the form that the base's template takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorry.errors import InvalidRequest, UnsupportedParameter

_ROLES = ("system", "developer", "user", "assistant", "tool")

_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
"""Fields that a template may read beside the content."""

KEYS = frozenset({"role", "content", "tool_calls", "refusal", *_TEXTS})
"""The fields of a message that are read. `lorry.api.sifting` removes others from a body; those from
elsewhere are refused by name unless they are null."""


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages for the template's variable. Like transformers, a content that is null is
    left out. Raises InvalidRequest, UnsupportedParameter."""
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
        if key not in KEYS and value is not None:
            raise UnsupportedParameter(f"{where}.{key[:80]} is not served", param="messages")
    calls = message.get("tool_calls")
    result: dict[str, Any] = {"role": role}
    content = _content(message.get("content"), f"{where}.content")
    if content is None and role == "assistant" and not calls:
        # The answer was a refusal, or empty.
        content = message.get("refusal") or ""
        if not isinstance(content, str):
            raise InvalidRequest(f"{where}.refusal must be a string", param="messages")
    if content is None and not calls:
        raise InvalidRequest(f"{where}.content is required", param="messages")
    if content is not None:
        result["content"] = content
    for key in _TEXTS:
        value = message.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise InvalidRequest(f"{where}.{key} must be a string", param="messages")
            result[key] = value
    if calls:
        result["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    return result


_PART_TEXT = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
"""By the type of a part: the key of its text."""


def _content(content: object, where: str) -> str | list[dict[str, str]] | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param="messages")
    parts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _PART_TEXT:
            raise UnsupportedParameter(
                f"{where}[{index}]: parts of type {json.dumps(kind)[:80]} are not served, "
                "only text",
                param="messages",
            )
        key = _PART_TEXT[kind]
        text = part.get(key)
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{index}].{key} must be a string", param="messages")
        parts.append({"type": "text", "text": text})
    return parts


def text_of(content: object) -> str:
    """Return the text of a content that is a string, text parts, or None."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return str(content or "")


def _calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Check the tool calls of an earlier answer."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list", param="messages")
    result = []
    for index, call in enumerate(calls):
        if isinstance(call, dict) and call.get("type") == "custom":
            raise UnsupportedParameter(
                f'{where}[{index}]: calls of type "custom" are not served; make it a function\'s',
                param="messages",
            )
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f"{where}[{index}].function must have a name and arguments", param="messages"
            )
        if not isinstance(call.get("id"), str | None):
            raise InvalidRequest(f"{where}[{index}].id must be a string", param="messages")
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(
                    f"{where}[{index}].function.arguments is not JSON: {error}", param="messages"
                ) from error
        named = {} if call.get("id") is None else {"id": call["id"]}
        result.append(
            {
                **named,
                "type": "function",
                "function": {"name": function["name"], "arguments": arguments},
            }
        )
    return result
