"""Turns one answer into the deltas of its message; a complete message is all of them together."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from lorry.api.calls.reader import Reader
from lorry.api.calls.source import Argued, Called, Found, Said, Thought
from lorry.api.openai import FINISH
from lorry.api.runs import Ending

Delta = dict[str, Any]


class Telling:
    """Text, reasoning and calls, as they come."""

    def __init__(
        self,
        reader: Reader,
        *,
        thinking: Reader | None = None,
        silent: bool = False,
        echo: str = "",
    ) -> None:
        """`thinking` separates the reasoning from the text for `reader`. `silent`: it is not
        wanted. `echo` is text before everything else."""
        self._reader = reader
        self._silent = silent
        self._thinking = thinking
        self._echo = echo
        self._calls = 0
        self.reasoning_tokens = 0
        """Tokens of the reasoning so far, including the mark that opens it."""
        self._undecided = 0

    def push(self, text: str) -> list[Delta]:
        """Take the text of one token and return what is certain now."""
        self._undecided += 1
        echo, self._echo = self._echo, ""
        made: list[Delta] = [{"content": echo}] if echo else []
        if self._thinking is None:
            return made + self._deltas(self._reader.push(text))
        return made + self._parted(self._thinking.push(text))

    def end(self) -> list[Delta]:
        """Return the rest of an answer that is over."""
        made = [] if self._thinking is None else self._parted(self._thinking.end())
        return made + self._deltas(self._reader.end())

    def _parted(self, found: Iterable[Found]) -> list[Delta]:
        made: list[Delta] = []
        for one in found:
            if isinstance(one, Thought):
                self.reasoning_tokens += self._undecided
                self._undecided = 0
                made += [] if self._silent else [{"reasoning_content": one.text}]
            else:
                assert isinstance(one, Said)
                self._undecided = 0
                made += self._deltas(self._reader.push(one.text))
        return made

    def reason(self, ending: Ending) -> str:
        """Return `finish_reason`. A call that was cut off does not count as a call."""
        called = self._reader.called and self._reader.complete
        return "tool_calls" if called else FINISH[ending]

    def _deltas(self, found: Iterable[Found]) -> list[Delta]:
        made: list[Delta] = []
        for one in found:
            if isinstance(one, Said):
                made.append({"content": one.text})
            elif isinstance(one, Called):
                function = {"name": one.name, "arguments": ""}
                call = {"id": _new_id(), "type": "function", "function": function}
                made.append({"tool_calls": [{"index": self._calls, **call}]})
                self._calls += 1
            elif isinstance(one, Argued):
                more = {"index": self._calls - 1, "function": {"arguments": one.text}}
                made.append({"tool_calls": [more]})
        return made


def message_of(deltas: Iterable[Delta]) -> dict[str, Any]:
    """Join deltas to a message."""
    text = reasoning = ""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        text += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({key: part[key] for key in ("id", "type", "function")})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["content"] = text or None
        message["tool_calls"] = calls
    return message


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
