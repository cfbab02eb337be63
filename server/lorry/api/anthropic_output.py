"""Converts a chat's answer to a message in Anthropic's format, and to the events of its stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageObject:
    """One message, built from the choices of a chat's chunks."""

    def __init__(self, model: str, adapters: Sequence[dict[str, Any]], prompt_tokens: int) -> None:
        self.view: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": prompt_tokens,
                "output_tokens": 0,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
            "adapters": list(adapters),
        }
        self._open = False
        """True if the last block can still grow."""
        self._arguments = ""
        """Arguments of the last block, if it is a call."""

    def found(self, cached: int) -> None:
        """Tell how many tokens of the prompt were found in the prefix cache. As in Anthropic's API,
        they are not among the input's."""
        usage = self.view["usage"]
        usage["input_tokens"] -= cached
        usage["cache_read_input_tokens"] = cached

    def begin(self) -> list[Event]:
        shown = {**self.view, "content": [], "usage": dict(self.view["usage"])}
        return [{"type": "message_start", "message": shown}, {"type": "ping"}]

    def grow(self, choice: dict[str, Any], stop: str | None) -> list[Event]:
        """Add a choice and return its events. `stop` is the stop string that ended the answer."""
        delta = choice["delta"]
        events: list[Event] = []
        if delta.get("reasoning_content"):
            events += self._text("thinking", delta["reasoning_content"])
        if delta.get("content"):
            events += self._text("text", delta["content"])
        for call in delta.get("tool_calls") or ():
            events += self._call(call)
        reason = choice.get("finish_reason")
        if reason is not None:
            events += self._end()
            said = _REASONS[reason]
            if reason == "stop" and stop is not None:
                said = "stop_sequence"
                self.view["stop_sequence"] = stop
            self.view["stop_reason"] = said
        return events

    def end(self, generated: int) -> list[Event]:
        self.view["usage"]["output_tokens"] = generated
        delta = {key: self.view[key] for key in ("stop_reason", "stop_sequence")}
        return [
            {"type": "message_delta", "delta": delta, "usage": self.view["usage"]},
            {"type": "message_stop"},
        ]

    def _text(self, kind: str, text: str) -> list[Event]:
        content = self.view["content"]
        events: list[Event] = []
        if not (self._open and content[-1]["type"] == kind):
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            events += self._begin(block)
        content[-1][kind] += text
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _call(self, call: dict[str, Any]) -> list[Event]:
        function = call["function"]
        events: list[Event] = []
        if call.get("id"):
            name = function["name"]
            events += self._begin({"type": "tool_use", "id": call["id"], "name": name, "input": {}})
        arguments = function["arguments"]
        if arguments:
            self._arguments += arguments
            events.append(self._delta({"type": "input_json_delta", "partial_json": arguments}))
        return events

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        events = self._end()
        self.view["content"].append(block)
        self._open = True
        self._arguments = ""
        return [*events, self._event("content_block_start", content_block=dict(block))]

    def _end(self) -> list[Event]:
        if not self._open:
            return []
        self._open = False
        block = self.view["content"][-1]
        if block["type"] == "tool_use":
            block["input"] = _object(self._arguments)
        return [self._event("content_block_stop")]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return self._event("content_block_delta", delta=delta)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "index": len(self.view["content"]) - 1, **fields}


def _object(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; those of a call that was cut off are incomplete."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
