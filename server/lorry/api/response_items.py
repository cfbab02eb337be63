"""Converts the fields of `/v1/responses` to chat's: items to messages, tools, formats."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lorry.api.hosted_tools import is_hosted
from lorry.errors import InvalidRequest, UnsupportedParameter

Item = dict[str, Any]

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""The types of text parts, with the keys of their text."""

_ROLES = ("system", "developer", "user", "assistant")


class Named(NamedTuple):
    """A function in a namespace."""

    namespace: str
    name: str


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def items_of(given: str | Sequence[Item] | None, find: Callable[[str], Item | None]) -> list[Item]:
    """Return all items with a type, an id and a status; `find` resolves references. An item may be
    referenced once only, since a few bytes would stand for a whole answer each time.

    Raises InvalidRequest.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    found: set[str] = set()

    def find_once(item_id: str) -> Item | None:
        if item_id in found:
            raise InvalidRequest(
                f"input: the item {item_id[:80]!r} is referenced twice; send it once",
                param="input",
            )
        found.add(item_id)
        return find(item_id)

    return [_item(item, f"input[{index}]", find_once) for index, item in enumerate(given or ())]


def _item(item: Item, where: str, find: Callable[[str], Item | None]) -> Item:
    kind = item.get("type")
    if kind == "item_reference" or (kind is None and item.keys() == {"id"}):
        found = find(item["id"]) if isinstance(item.get("id"), str) else None
        if found is None:
            raise InvalidRequest(
                f"{where}.id: no stored response has an item {json.dumps(item.get('id'))[:80]}; "
                "send the item itself",
                param="input",
            )
        return found
    if kind is None:
        kind = "message"
    if not isinstance(kind, str):
        raise InvalidRequest(f"{where}.type must be a string", param="input")
    made = item.get("id")
    if not isinstance(made, str) or not made:
        made = f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"
    # Clients leave these out, and require them in the items that they list.
    named: Item = {"id": made, "type": kind, "status": item.get("status") or "completed"}
    if kind == "message" and isinstance(item.get("content"), str):
        part: Item = {"type": "input_text", "text": item["content"]}
        if item.get("role") == "assistant":
            part |= {"type": "output_text", "annotations": []}
        named["content"] = [part]
    return {**item, **named}


def messages_of(items: Iterable[Item], *, new: int) -> list[dict[str, Any]]:
    """Return chat's messages. Calls join the assistant's message before them; reasoning is left
    out. The last `new` items are the request's own, and errors name their positions.

    Raises InvalidRequest, UnsupportedParameter.
    """
    items = list(items)
    messages: list[dict[str, Any]] = []
    names: dict[object, str] = {}
    for index, item in enumerate(items):
        where = f"input[{index - len(items) + new}]"
        kind = item["type"]
        if kind == "message":
            role = item.get("role")
            if role not in _ROLES:
                raise InvalidRequest(
                    f"{where}.role must be one of {', '.join(_ROLES)}, not {json.dumps(role)[:80]}",
                    param="input",
                )
            content = _texts(item.get("content"), f"{where}.content")
            messages.append({"role": role, "content": content})
        elif kind == "function_call":
            call = _call(item, where)
            names[call["id"]] = call["function"]["name"]
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            call_id = _text(item, "call_id", where)
            message = {
                "role": "tool",
                "tool_call_id": call_id,
                "content": _texts(item.get("output"), f"{where}.output"),
            }
            if call_id in names:
                message["name"] = names[call_id]
            messages.append(message)
        elif kind != "reasoning":
            raise UnsupportedParameter(
                f"{where}: items of type {kind[:80]!r} are not served; send message, "
                "function_call, function_call_output or reasoning",
                param="input",
            )
    return messages


def _call(item: Item, where: str) -> dict[str, Any]:
    arguments = _text(item, "arguments", where)
    try:
        json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}.arguments is not JSON: {error}", param="input") from error
    name = chat_name(_text(item, "name", where), item.get("namespace"))
    function = {"name": name, "arguments": arguments}
    return {"id": _text(item, "call_id", where), "type": "function", "function": function}


def _text(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{key} must be a string", param="input")
    return value


def _texts(content: object, where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param="input")
    parts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise UnsupportedParameter(
                f"{where}[{index}]: parts of type {json.dumps(kind)[:80]} are not served, "
                "only text",
                param="input",
            )
        key = _TEXT_PARTS[kind]
        parts.append({"type": "text", "text": _text(part, key, f"{where}[{index}]")})
    return parts


def tools_of(
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[list[dict[str, Any]], dict[str, Named]]:
    """Return the functions in chat's form, including those in namespaces, and the meaning of each
    name that belongs to a namespace. Raises InvalidRequest, UnsupportedParameter."""
    made: list[dict[str, Any]] = []
    names: dict[str, Named] = {}
    for namespace, tool, where in _functions(tools or ()):
        function = {
            key: value for key, value in tool.items() if key != "type" and value is not None
        }
        name = function.get("name")
        if namespace is not None and isinstance(name, str):
            function["name"] = chat_name(name, namespace)
            names[function["name"]] = Named(namespace, name)
        if tool.get("type") != "function":
            raise UnsupportedParameter(
                f"{where}: tools of type {json.dumps(tool.get('type'))[:80]} are not served; make "
                "it a function",
                param="tools",
            )
        made.append({"type": "function", "function": function})
    return made, names


def _functions(
    tools: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str | None, Mapping[str, Any], str]]:
    """Yield every tool with its namespace and its path, except those that are left out."""
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        inner = tool.get("tools")
        if is_hosted(tool):
            continue
        if tool.get("type") != "namespace":
            yield None, tool, where
            continue
        if not isinstance(tool.get("name"), str) or not isinstance(inner, list):
            raise InvalidRequest(f"{where} must have a name and tools", param="tools")
        for number, one in enumerate(inner):
            place = f"{where}.tools[{number}]"
            if not isinstance(one, Mapping):
                raise InvalidRequest(f"{place} must be an object", param="tools")
            yield tool["name"], one, place


def chat_name(name: str, namespace: object) -> str:
    """Return a function's name in chat, which has no namespaces."""
    return f"{namespace}__{name}" if isinstance(namespace, str) else name


def tool_choice_of(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """Convert the choice to chat's form. Raises UnsupportedParameter."""
    if choice is None or isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return _choice(choice)
    if kind == "allowed_tools":
        tools = choice.get("tools")
        named = [_choice(tool) for tool in tools] if isinstance(tools, list) else tools
        allowed = {"mode": choice.get("mode"), "tools": named}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    raise UnsupportedParameter(
        f"tool_choice: the type {json.dumps(kind)[:80]} is not served; name a function",
        param="tool_choice",
    )


def _choice(tool: object) -> dict[str, Any]:
    """Convert one function that may be called to chat's form."""
    given = tool if isinstance(tool, Mapping) else {}
    name = given.get("name")
    if isinstance(name, str):
        name = chat_name(name, given.get("namespace"))
    return {"type": given.get("type"), "function": {"name": name}}


def format_of(format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return `text.format` as `response_format`."""
    if format is None:
        return None
    if format.get("type") == "json_schema" and "json_schema" not in format:
        inner = {key: value for key, value in format.items() if key != "type"}
        return {"type": "json_schema", "json_schema": inner}
    return dict(format)
