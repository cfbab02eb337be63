"""`/generate_stream` as a client reads it, event by event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Refused(Exception):
    """The server answered with an error before, or in the middle of, the stream."""

    status: int
    body: dict[str, Any]


@dataclass
class Answer:
    """A whole stream."""

    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [event["token"]["id"] for event in self.events]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


@contextmanager
def stream(
    client: httpx.Client, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Iterator[Iterator[dict[str, Any]]]:
    """The parsed events of one request; leaving the block early hangs up."""
    with client.stream("POST", "/generate_stream", json=body, headers=headers) as response:
        if response.status_code != 200:
            response.read()
            raise Refused(response.status_code, response.json())
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _events(response)


def read(client: httpx.Client, body: dict[str, Any]) -> Answer:
    """The whole stream, to its end."""
    with stream(client, body) as events:
        return Answer(list(events))


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if not line or line.startswith(":"):
            continue
        assert line.startswith("data:"), line
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            raise Refused(response.status_code, event)
        yield event
