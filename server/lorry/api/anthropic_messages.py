"""Converts the fields of `/v1/messages` to chat's: messages, tools, formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorry.api.hosted_tools import is_hosted
from lorry.errors import InvalidRequest, UnsupportedParameter

Block = Mapping[str, Any]

_ROLES = ("user", "assistant", "system")


def messages_of(
    messages: Sequence[Mapping[str, Any]], system: str | Sequence[Block] | None
) -> list[dict[str, Any]]:
    """Return chat's messages. Results of tools become messages of their own, and thoughts are left
    out. Raises InvalidRequest, UnsupportedParameter.
    """
    if not messages:
        raise InvalidRequest("messages is empty; send at least one", param="messages")
    made: list[dict[str, Any]] = []
    if system:
        said = system if isinstance(system, str) else _texts(system, "system", "system")
        made.append({"role": "system", "content": said})
    names: dict[object, str] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise InvalidRequest(
                f"{where}.role must be one of {', '.join(_ROLES)}, not {json.dumps(role)[:80]}",
                param="messages",
            )
        if isinstance(content, str):
            made.append({"role": role, "content": content})
        elif not isinstance(content, list):
            raise InvalidRequest(
                f"{where}.content must be a string or a list of blocks", param="messages"
            )
        elif role == "assistant":
            made.append(_said(content, f"{where}.content", names))
        elif role == "user":
            made += _told(content, f"{where}.content", names)
        else:
            made.append({"role": role, "content": _texts(content, f"{where}.content", "messages")})
    return made


def _said(blocks: Sequence[object], where: str, names: dict[object, str]) -> dict[str, Any]:
    """Convert the assistant's message. The names of its calls are added to `names`."""
    texts: list[dict[str, str]] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        kind = _kind(block)
        if kind == "text":
            texts.append(_part(block, place, "messages"))
        elif kind == "tool_use":
            assert isinstance(block, Mapping)
            given = block.get("input")
            if not isinstance(given, Mapping):
                raise InvalidRequest(f"{place}.input must be an object", param="messages")
            call_id, name = _text(block, "id", place), _text(block, "name", place)
            names[call_id] = name
            function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
            calls.append({"id": call_id, "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            raise _unserved(kind, place, "text, tool_use and thinking")
    if calls:
        return {"role": "assistant", "content": texts or None, "tool_calls": calls}
    return {"role": "assistant", "content": texts or ""}


def _told(
    blocks: Sequence[object], where: str, names: Mapping[object, str]
) -> list[dict[str, Any]]:
    """Convert the user's message and the results of tools, in order."""
    made: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        kind = _kind(block)
        if kind == "text":
            if not made or made[-1]["role"] != "user":
                made.append({"role": "user", "content": []})
            made[-1]["content"].append(_part(block, place, "messages"))
        elif kind == "tool_result":
            assert isinstance(block, Mapping)
            call_id, content = _text(block, "tool_use_id", place), block.get("content")
            if not isinstance(content, str):
                content = _texts(() if content is None else content, f"{place}.content", "messages")
            answer = {"role": "tool", "tool_call_id": call_id, "content": content}
            if call_id in names:
                answer["name"] = names[call_id]
            made.append(answer)
        else:
            raise _unserved(kind, place, "text and tool_result")
    return made or [{"role": "user", "content": ""}]


def _kind(block: object) -> str | None:
    kind = block.get("type") if isinstance(block, Mapping) else None
    return kind if isinstance(kind, str) else None


def _unserved(
    kind: str | None, place: str, served: str, param: str = "messages"
) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"{place}: blocks of type {json.dumps(kind)[:80]} are not served, only {served}",
        param=param,
    )


def _texts(blocks: object, where: str, param: str) -> list[dict[str, str]]:
    if not isinstance(blocks, Sequence):
        raise InvalidRequest(f"{where} must be a string or a list of blocks", param=param)
    return [_part(block, f"{where}[{index}]", param) for index, block in enumerate(blocks)]


def _part(block: object, place: str, param: str) -> dict[str, str]:
    if _kind(block) != "text":
        raise _unserved(_kind(block), place, "text", param)
    return {"type": "text", "text": _text(block, "text", place, param)}


def _text(block: object, key: str, place: str, param: str = "messages") -> str:
    value = block.get(key) if isinstance(block, Mapping) else None
    if not isinstance(value, str):
        raise InvalidRequest(f"{place}.{key} must be a string", param=param)
    return value


def tools_of(tools: Sequence[Block] | None) -> list[dict[str, Any]]:
    """Convert the tools to chat's form. Raises InvalidRequest, UnsupportedParameter."""
    made = []
    for index, tool in enumerate(tools or ()):
        kind = tool.get("type")
        if is_hosted(tool):
            continue
        if kind not in (None, "custom"):
            raise UnsupportedParameter(
                f"tools[{index}]: tools of type {json.dumps(kind)[:80]} are not served; describe "
                "it with an input_schema",
                param="tools",
            )
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        for key in ("description", "strict"):
            if tool.get(key) is not None:
                function[key] = tool[key]
        made.append({"type": "function", "function": function})
    return made


def tool_choice_of(choice: Block | None) -> str | dict[str, Any] | None:
    """Convert the choice to chat's form. Raises InvalidRequest."""
    if choice is None:
        return None
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    known = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in known:
        raise InvalidRequest(
            f"tool_choice.type must be auto, any, tool or none, not {json.dumps(kind)[:80]}",
            param="tool_choice",
        )
    return known[kind]


def format_of(config: Block | None, older: Block | None = None) -> dict[str, Any] | None:
    """Return `output_config.format` as `response_format`, or `older`, the field that was there
    before it. Raises InvalidRequest."""
    format, name = (config or {}).get("format"), "output_config.format"
    if format is None:
        format, name = older, "output_format"
    elif older is not None and older != format:
        raise InvalidRequest(
            "output_format and output_config.format differ; give one", param="output_format"
        )
    if format is None:
        return None
    if not isinstance(format, Mapping) or format.get("type") != "json_schema":
        raise InvalidRequest(
            f'{name} must be {{"type": "json_schema", "schema": {{...}}}}',
            param=name.partition(".")[0],
        )
    return {"type": "json_schema", "json_schema": {"schema": format.get("schema")}}
