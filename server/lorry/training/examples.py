"""Training data as people have it: JSON Lines of chats, of prompts with completions, or of texts.

OpenAI's fine-tuning files are chats: `messages`, `tools`, and a `weight` of 0 on an answer that is
not learned. Fields that change nothing are ignored. All problems of a file are reported together,
each with its line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorry.errors import TrainingError

_PROMPTS = ("prompt", "instruction", "question", "input")
_COMPLETIONS = ("completion", "answer", "response", "output")

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

_SHAPES = 'a line has "messages" (a chat), "prompt" and "completion" (a pair), or "text"'

_MOST_PROBLEMS = 10
"""Lines that an error lists; it says how many more there are."""


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation. `learned` has the places of the messages that carry loss."""

    where: str
    messages: tuple[Mapping[str, Any], ...]
    learned: tuple[int, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PairExample:
    """A prompt and its completion, of which the completion carries loss."""

    where: str
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text, all of which carries loss."""

    where: str
    text: str


Example = ChatExample | PairExample | TextExample


class _Unfit(Exception):
    """One line cannot be used."""


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a file: `.jsonl`, or `.txt` with one text.

    Raises TrainingError with every line that is no example, and if shapes are mixed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 (byte {error.start})") from None
    if path.suffix == ".txt":
        if not text.strip():
            raise TrainingError(f"{path} is empty")
        return [TextExample(path.name, text)]
    examples: list[Example] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            examples.append(_example(line, where))
        except _Unfit as error:
            problems.append(f"{where}: {error}")
    problems += _mixed(examples)
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        raise TrainingError(
            "; ".join(problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        )
    if not examples:
        raise TrainingError(f"{path} has no example")
    return examples


def _mixed(examples: Sequence[Example]) -> list[str]:
    kinds = {type(example): example for example in reversed(examples)}
    if len(kinds) < 2:
        return []
    names = {ChatExample: "chat", PairExample: "pair", TextExample: "text"}
    firsts = ", ".join(f"{names[kind]} at {one.where}" for kind, one in kinds.items())
    return [f"the file mixes shapes ({firsts}); put each shape in a file of its own"]


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Unfit(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(row, dict):
        raise _Unfit(f"is {type(row).__name__}, not an object; {_SHAPES}")
    if "messages" in row:
        return _chat(row, where)
    if "preferred_output" in row or "chosen" in row:
        raise _Unfit("has preferences; only supervised examples are learned from")
    if "text" in row and "completion" not in row:
        return TextExample(where, _text(row, "text"))
    prompt = next((name for name in _PROMPTS if name in row), None)
    completion = next((name for name in _COMPLETIONS if name in row), None)
    if prompt is None or completion is None:
        raise _Unfit(f"has {', '.join(map(repr, row)) or 'no field'}; {_SHAPES}")
    if isinstance(row[prompt], list) and isinstance(row[completion], list):
        before = [_unlearned(message) for message in row[prompt]]
        return _chat({**row, "messages": before + row[completion]}, where)
    return PairExample(where, _prompt(row, prompt), _text(row, completion))


def _unlearned(message: object) -> object:
    """A message of a prompt that is a chat itself."""
    assistant = isinstance(message, dict) and message.get("role") == "assistant"
    return {**message, "weight": 0} if assistant else message  # type: ignore[dict-item]


def _prompt(row: Mapping[str, Any], name: str) -> str:
    """The prompt; an instruction's `input` follows it after an empty line."""
    prompt = _text(row, name)
    more = row.get("input") if name == "instruction" else None
    if not more:
        return prompt
    return f"{prompt}\n\n{_text(row, 'input')}"


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise _Unfit(f"{name!r} is {type(value).__name__}, not text")
    return value


def _chat(row: Mapping[str, Any], where: str) -> ChatExample:
    given = row["messages"]
    if not isinstance(given, list) or not given:
        raise _Unfit("'messages' is not a list of messages")
    messages = [_message(message, place) for place, message in enumerate(given)]
    learned = tuple(
        place
        for place, message in enumerate(given)
        if message["role"] == "assistant" and _weight(message, place)
    )
    if not learned:
        raise _Unfit("no message of the assistant is left to learn")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise _Unfit("'tools' is not a list of objects")
    return ChatExample(where, tuple(messages), learned, tuple(tools))


def _weight(message: Mapping[str, Any], place: int) -> bool:
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise _Unfit(f"message {place + 1} has the weight {weight!r}; it is 0 or 1")
    return bool(weight)


def _message(message: object, place: int) -> Mapping[str, Any]:
    """The fields that a chat template reads, checked."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _Unfit(f"message {place + 1} is no object with a role")
    role = message["role"]
    if role not in _ROLES:
        raise _Unfit(
            f"message {place + 1} has the role {role!r}; roles are {', '.join(sorted(_ROLES))}"
        )
    read: dict[str, Any] = {"role": role}
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not calls:
        raise _Unfit(f"message {place + 1} has no content")
    read["content"] = "" if content is None else _content(content, place)
    if calls:
        read["tool_calls"] = [_call(call, place) for call in calls]
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            read[name] = message[name]
    return read


def _content(content: object, place: int) -> str:
    """The text of a message; parts are joined."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _Unfit(f"message {place + 1} has content that is not text")
    return "".join(map(str, texts))


def _call(call: object, place: int) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Unfit(f"message {place + 1} has a tool call without a function's name")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            raise _Unfit(f"message {place + 1} calls {function['name']} with bad JSON") from None
    if not isinstance(arguments, dict):
        raise _Unfit(f"message {place + 1} calls {function['name']} without an object of arguments")
    kept = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**kept, "id": call["id"]} if isinstance(call, dict) and "id" in call else kept
