"""Answers with calls in every notation, and what is read of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lorry.api.calls.choice import NOTATIONS
from lorry.api.calls.notation import Offered
from lorry.api.calls.reader import Reader, free
from lorry.api.calls.source import Argued, Called, Done, Found, Said

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "when": {"type": "object"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "time"}},
]

Call = tuple[str, Any]


def reader(notation: str, *, several: bool = True) -> Reader:
    return Reader(free(NOTATIONS[notation], Offered(TOOLS)), several=several)


def events(reader: Reader, pieces: Iterable[str]) -> list[Found]:
    """All that is found, neighbours of one kind joined."""
    found: list[Found] = []
    for piece in pieces:
        found += reader.push(piece)
    joined: list[Found] = []
    for one in [*found, *reader.end()]:
        last = joined[-1] if joined else None
        if isinstance(one, Said) and isinstance(last, Said):
            joined[-1] = Said(last.text + one.text)
        elif isinstance(one, Argued) and isinstance(last, Argued):
            joined[-1] = Argued(last.text + one.text)
        else:
            joined.append(one)
    return joined


def read(notation: str, text: str, *, several: bool = True) -> tuple[str, list[Call]]:
    """The text, and the calls with their arguments; those that were cut off have a text."""
    said = ""
    calls: list[Call] = []
    for one in events(reader(notation, several=several), [text]):
        if isinstance(one, Said):
            said += one.text
        elif isinstance(one, Called):
            calls.append((one.name, ""))
        elif isinstance(one, Argued):
            calls[-1] = (calls[-1][0], calls[-1][1] + one.text)
        else:
            assert isinstance(one, Done)
            calls[-1] = (calls[-1][0], json.loads(calls[-1][1]))
    return said, calls


ROME: Call = ("weather", {"city": "Rome", "days": 2})
KOELN: Call = ("weather", {"city": 'K"öl}n', "when": {"x": [1, {}]}})
TIME: Call = ("time", {})

ONE = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
TWO = '{"name": "weather", "parameters": {"city": "K\\"öl}n", "when": {"x": [1, {}]}}}'
NONE = '{"name": "time", "arguments": {}}'

ANSWERS: Sequence[tuple[str, str, str, list[Call]]] = (
    ("hermes", f"<tool_call>\n{ONE}\n</tool_call>", "", [ROME]),
    (
        "hermes",
        f"Let me look. <tool_call>{TWO}</tool_call>\n<tool_call>{NONE}</tool_call>\n",
        "Let me look. ",
        [KOELN, TIME],
    ),
    ("hermes", f"<tool_call>[{ONE}, {NONE}]</tool_call>", "", [ROME, TIME]),
    ("hermes", ONE, "", [ROME]),
    ("hermes", f"```json\n[{ONE}]\n```", "", [ROME]),
    ("hermes", f"<tool_call>{ONE[:-1]}</tool_call> done", "done", [ROME]),
    ("hermes", '<tool_call>{"name": "time"}</tool_call>', "", [TIME]),
    ("hermes", '<tool_call>{"arguments": {}, "name": "time"}</tool_call>', "", [TIME]),
    ("hermes", '<tool_call>{"name": "time", "arguments": "{}"}</tool_call>', "", [TIME]),
    (
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "time", "arguments": null}}'
        "</tool_call>",
        "",
        [TIME],
    ),
    ("hermes", "no call", "no call", []),
    ("hermes", "a <tool", "a <tool", []),
    ("hermes", "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
    ("hermes", "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    ("hermes", '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
    ("hermes", '{"answer": 3}', '{"answer": 3}', []),
    (
        "qwen",
        "Well.\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "Well.\n",
        [ROME],
    ),
    ("qwen", f"<tool_call>\n{ONE}\n</tool_call>", "", [ROME]),
    ("qwen", "<function=time>\n</function>", "", [TIME]),
    (
        "qwen",
        "<tool_call><function=weather><parameter=city>12</parameter></function></tool_call>",
        "",
        [("weather", {"city": "12"})],
    ),
    (
        "qwen",
        "<function=weather><parameter=days>NaN</parameter><parameter=when>\n[1e999]\n</parameter>"
        "<parameter=city>\nRome\n</parameter></function>",
        "",
        [("weather", {"days": "NaN", "when": "[1e999]", "city": "Rome"})],
    ),
    ("gemma", "<|tool_call>call:time{a:-Infinity}<tool_call|>", "", [("time", {"a": "-Infinity"})]),
    ("llama3", TWO, "", [KOELN]),
    ("llama3", f"<|python_tag|>{ONE}; {NONE}", "", [ROME, TIME]),
    ("llama3", f"{ONE};{NONE}", "", [ROME, TIME]),
    ("llama3", '<function=weather>{"city": "Rome", "days": 2}</function>', "", [ROME]),
    ("llama3", '[weather(city="Rome", days=2), time()]', "", [ROME, TIME]),
    ("llama3", "<|python_tag|>print(3)", "<|python_tag|>print(3)", []),
    ("pythonic", "[weather('Rome', 2)]", "", [ROME]),
    (
        "pythonic",
        """weather(city='K"öl}n', when={"x": [1, {}]})""",
        "",
        [KOELN],
    ),
    (
        "pythonic",
        "[weather(city='a\\n', when={'a': (True, None, -1.5)})]",
        "",
        [("weather", {"city": "a\n", "when": {"a": [True, None, -1.5]}})],
    ),
    ("pythonic", "[1, 2]", "[1, 2]", []),
    ("pythonic", "weather is fine", "weather is fine", []),
    (
        "mistral",
        f'[TOOL_CALLS][{ONE[:-1]}, "id": "a12345678"}}, {NONE}]',
        "",
        [ROME, TIME],
    ),
    (
        "mistral",
        'Well. [TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 2}[TOOL_CALLS]time{}',
        "Well. ",
        [ROME, TIME],
    ),
    ("mistral", "[TOOL_CALLS]time[CALL_ID]a12345678[ARGS]{}", "", [TIME]),
    ("mistral", "[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    ("phi", f"functools[{ONE}, {NONE}]", "", [ROME, TIME]),
    ("phi", f"<|tool_call|>[{ONE}]<|/tool_call|>", "", [ROME]),
    ("phi", "import functools\n", "import functools\n", []),
    ("granite", f"<|tool_call|>[{ONE}]", "", [ROME]),
    ("granite", f"<tool_call>[{ONE}, {NONE}]", "", [ROME, TIME]),
    ("granite", f"<function_call> {ONE}\n<function_call> {NONE}", "", [ROME, TIME]),
    ("gemma", '```tool_code\nweather(city="Rome", days=2)\n```', "", [ROME]),
    ("gemma", "Well.\n```tool_code\nprint(weather('Rome', 2))\n```", "Well.\n", [ROME]),
    ("gemma", f"```json\n{ONE}\n```", "", [ROME]),
    (
        "gemma",
        "<start_function_call>call:weather{city:<escape>Rome<escape>,days:2}<end_function_call>",
        "",
        [ROME],
    ),
    (
        "gemma",
        '<|tool_call>call:weather{city:<|"|>K"öl}n<|"|>,when:{x:[1,{}]}}<tool_call|>'
        "<|tool_call>call:time{}<tool_call|>",
        "",
        [KOELN, TIME],
    ),
    ("gemma", "```tool_code\nprint(3)\n```", "```tool_code\nprint(3)\n```", []),
    ("json", f"[{ONE}, {TWO}]", "", [ROME, KOELN]),
    ("json", f"Here: {ONE}", f"Here: {ONE}", []),
)
"""Notation, answer, the text that is left of it, and its calls."""
