"""What tests of a chat in other words share: `/v1/responses` and `/v1/messages`."""

from __future__ import annotations

import json
from typing import Any

import httpx

from api.live import Live

CALLS = (
    "{% for m in messages %}[{{ m.role }}{% for c in m.tool_calls or [] %} "
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    " {{ m.name or '' }} {{ m.content }}]{% endfor %}"
)
"""A template that shows what reaches it of calls and their results."""


def typed_events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Of a stream whose events are named by their types."""
    assert answer.status_code == 200, answer.text
    return events_in(answer.text)


def events_in(text: str) -> list[dict[str, Any]]:
    found = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def tokens(live: Live, text: str) -> int:
    body = {"inputs": text, "add_special_tokens": False}
    return len(live.http.post("/tokenize", json=body).json())
