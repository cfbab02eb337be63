"""Converts a chat's answer to a response's output items, and to the events of its stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorry.api.response_items import Named

Event = dict[str, Any]


class Output:
    """Items in progress. Every call returns its events, without sequence numbers."""

    def __init__(self, key: str, names: Mapping[str, Named] | None = None) -> None:
        """`key` is the response's id without its prefix. The items' ids contain it, so that the
        response of an item can be found. `names` are chat's names of functions in namespaces."""
        self._names = names or {}
        self.items: list[dict[str, Any]] = []
        self._key = key
        self._open = False
        """True if the last item can still grow."""

    def push(self, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> list[Event]:
        """Add the delta of a chat's chunk, or a whole message in its form."""
        events: list[Event] = []
        reasoning = delta.get("reasoning_content")
        if reasoning:
            events += self._begin("reasoning", {"summary": [], "content": []})
            events += self._grow(reasoning, "reasoning_text", None)
        text = delta.get("content")
        calls = delta.get("tool_calls") or ()
        # An item has no place for the log-probabilities of a call.
        if text or (logprobs and logprobs["content"] and not calls):
            events += self._say(text or "", logprobs)
        for call in calls:
            events += self._call(call)
        return events

    def finish(self, reason: str) -> list[Event]:
        """`reason` is chat's `finish_reason`."""
        events: list[Event] = []
        if not self.items:
            # An answer without visible tokens is an empty text.
            events += self._say("", None)
        return events + self._end("incomplete" if reason == "length" else "completed")

    def break_off(self) -> None:
        """Stop here: an item that could still grow stays incomplete."""
        self._end("incomplete")

    def _say(self, text: str, logprobs: dict[str, Any] | None) -> list[Event]:
        fields = {"role": "assistant", "status": "in_progress", "content": []}
        return self._begin("message", fields) + self._grow(text, "output_text", logprobs)

    def _begin(self, kind: str, fields: dict[str, Any]) -> list[Event]:
        """Make the last item one of this kind, unless it is one already."""
        if self._open and self.items[-1]["type"] == kind:
            return []
        events = self._end("completed")
        prefix = {"message": "msg", "function_call": "fc", "reasoning": "rs"}[kind]
        item = {"id": f"{prefix}_{self._key}_{len(self.items)}", "type": kind, **fields}
        self.items.append(item)
        self._open = True
        shown = {**item, "content": []} if "content" in item else dict(item)
        return [*events, self._event("response.output_item.added", item=shown)]

    def _grow(self, text: str, kind: str, logprobs: dict[str, Any] | None) -> list[Event]:
        content = self.items[-1]["content"]
        events: list[Event] = []
        if not content:
            part: dict[str, Any] = {"type": kind, "text": ""}
            if kind == "output_text":
                part |= {"annotations": [], "logprobs": []}
            content.append(part)
            events.append(self._of_part("response.content_part.added", part={**part}))
        content[0]["text"] += text
        said: dict[str, Any] = {"delta": text}
        if kind == "output_text":
            said["logprobs"] = logprobs["content"] if logprobs else []
            content[0]["logprobs"] = content[0]["logprobs"] + said["logprobs"]
        if text or said.get("logprobs"):
            events.append(self._of_part(f"response.{kind}.delta", **said))
        return events

    def _call(self, call: dict[str, Any]) -> list[Event]:
        function = call["function"]
        events: list[Event] = []
        if call.get("id"):
            events += self._end("completed")
            name = function["name"]
            named = self._names.get(name)
            fields = {
                "status": "in_progress",
                "call_id": call["id"],
                "name": name if named is None else named.name,
                "arguments": "",
            }
            if named is not None:
                fields["namespace"] = named.namespace
            events += self._begin("function_call", fields)
        arguments = function["arguments"]
        if arguments:
            self.items[-1]["arguments"] += arguments
            events.append(self._of_item("response.function_call_arguments.delta", delta=arguments))
        return events

    def _end(self, status: str) -> list[Event]:
        if not self._open:
            return []
        self._open = False
        item = self.items[-1]
        events: list[Event] = []
        if item["type"] == "function_call":
            done = "response.function_call_arguments.done"
            events.append(self._of_item(done, name=item["name"], arguments=item["arguments"]))
        else:
            (part,) = item["content"]
            said = {"text": part["text"]}
            if "logprobs" in part:
                said["logprobs"] = part["logprobs"]
            events.append(self._of_part(f"response.{part['type']}.done", **said))
            events.append(self._of_part("response.content_part.done", part=part))
        if "status" in item:
            item["status"] = status
        return [*events, self._event("response.output_item.done", item=dict(item))]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, **fields}

    def _of_item(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self.items[-1]["id"], **fields)

    def _of_part(self, kind: str, **fields: Any) -> Event:
        return self._of_item(kind, content_index=0, **fields)
