"""Describes tools as text, for chat templates that take none.

The tools are in the system message, a call has the notation of Hermes and Qwen, and a result is a
message of the user's. This is the most common notation in training data, and uses no role
or field that a plain template would ignore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from lorry.api.messages import text_of


class ToolPrompt(StrEnum):
    """How tools get into the prompt."""

    AUTO = "auto"
    """Through the template or, if it takes no tools, through `PROMPT`."""
    TEMPLATE = "template"
    GENERIC = "generic"
    """Always through `PROMPT`."""


LEAD = "You can call these functions:"
"""A request's `tool_prompt` replaces it."""

PROMPT = """\
{lead}
{tools}

To call one, answer only with
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>
When you have what you need, answer the user in plain words."""
"""Short, and without a description of results: with one, the default base repeated a result
instead of answering from it."""


def speaks_of_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether calls or results are among the messages."""
    return any(one.get("role") == "tool" or one.get("tool_calls") for one in messages)


def carried(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    in_system: bool,
    lead: str = LEAD,
) -> list[dict[str, Any]]:
    """Return the conversation without calls and role `tool`, and with `tools` in its text.

    `in_system`: the template takes a system message; otherwise the tools come before the first
    message.
    """
    made: list[dict[str, Any]] = []
    answers = False
    for message in messages:
        one = dict(message)
        calls = one.pop("tool_calls", None)
        result = one["role"] == "tool"
        if calls:
            said = [text_of(one.get("content")), *map(_call, calls)]
            one["content"] = "\n".join(filter(None, said))
        elif result:
            text = f"<tool_response>\n{text_of(one.get('content'))}\n</tool_response>"
            one = {"role": "user", "content": text}
        if answers and one["role"] == "user":
            # Templates want the user and the assistant to alternate.
            made[-1]["content"] += "\n" + text_of(one["content"])
        else:
            made.append(one)
        answers = result or (answers and one["role"] == "user")
    if tools is None:
        return made
    prompt = PROMPT.format(lead=lead, tools="\n".join(_json(tool) for tool in tools))
    if not in_system:
        made[0]["content"] = f"{prompt}\n\n{text_of(made[0].get('content'))}"
    elif made[0]["role"] in ("system", "developer"):
        made[0]["content"] = f"{text_of(made[0].get('content'))}\n\n{prompt}"
    else:
        made.insert(0, {"role": "system", "content": prompt})
    return made


def in_system(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the conversation with the functions as JSON in its system message's `tools`."""
    made = [dict(message) for message in messages]
    if made[0]["role"] not in ("system", "developer"):
        made.insert(0, {"role": "system", "content": ""})
    made[0]["tools"] = _json([tool["function"] for tool in tools])
    return made


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    said = _json({"name": function["name"], "arguments": arguments})
    return f"<tool_call>\n{said}\n</tool_call>"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
