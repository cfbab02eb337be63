"""Every state that an adapter was ever in, by the clock of who changes it.

A change is between two states from when it was asked for until its answer was there: whoever
asks meanwhile may meet either.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from support.patience import client
from support.server import Server

VARIANTS = ["plain", "large", "rslora", "mlp_only", "attention_only", "head", "small", "regex"]
SCALES = [1.0, 0.5, -0.75, 0.0]


@dataclass(frozen=True)
class State:
    digest: str
    scale: float
    enabled: bool


S = TypeVar("S")


@dataclass
class Entry(Generic[S]):
    """From `began` on the state may be current, from `ended` on it is."""

    began: float
    ended: float
    state: S | None


@dataclass
class History(Generic[S]):
    """All states one name was ever in. Written by one thread, read by others later."""

    entries: list[Entry[S]] = field(default_factory=lambda: [Entry(0.0, 0.0, None)])

    @property
    def current(self) -> S | None:
        return self.entries[-1].state

    def between(self, begin: float, end: float) -> list[S | None]:
        """Every state that may have been current at some moment of this time."""
        nexts = [entry.ended for entry in self.entries[1:]] + [float("inf")]
        return [
            entry.state
            for entry, replaced in zip(self.entries, nexts, strict=True)
            if entry.began <= end and replaced >= begin
        ]


class Manager:
    """Changes its own names at random, as an operator with scripts would."""

    def __init__(
        self, server: Server, names: list[str], archive: Callable[..., Path], seed: int
    ) -> None:
        self.histories: dict[str, History[State]] = {name: History() for name in names}
        self.changes = 0
        self._client = client(server.url)
        self._archive = archive
        self._random = random.Random(seed)

    def create_all(self) -> None:
        for name in self.histories:
            self._upload(name)

    def delete_all(self) -> None:
        for name, history in self.histories.items():
            if history.current is not None:
                self._delete(name)
        self._client.close()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._change()
            self.changes += 1
            time.sleep(self._random.uniform(0.0, 0.02))

    def _change(self) -> None:
        off = [n for n, h in self.histories.items() if h.current is None or not h.current.enabled]
        if off and self._random.random() < 0.7:
            # Most are usable at most times, or few answers would have two adapters.
            name = self._random.choice(off)
            again = self._upload if self.histories[name].current is None else self._toggle
            return again(name)
        name = self._random.choice(list(self.histories))
        if self.histories[name].current is None:
            return self._upload(name)
        changes = [self._upload, self._upload, self._scale, self._scale, self._toggle, self._delete]
        return self._random.choice(changes)(name)

    def _note(self, name: str, send: Callable[[], tuple[httpx.Response, State | None]]) -> None:
        history = self.histories[name]
        entry: Entry[State] = Entry(time.monotonic(), float("inf"), None)
        response, entry.state = send()
        assert response.is_success, (name, response.status_code, response.text)
        entry.ended = time.monotonic()
        history.entries.append(entry)

    def _upload(self, name: str) -> None:
        path = self._archive(self._random.choice(VARIANTS), self._random.randrange(2))
        current = self.histories[name].current

        def send() -> tuple[httpx.Response, State]:
            with path.open("rb") as file:
                if current is not None and self._random.random() < 0.5:
                    answer = self._client.put(f"/adapters/{name}", files={"file": file})
                else:
                    fields = {"name": name, "replace": "true"}
                    answer = self._client.post("/adapters", data=fields, files={"file": file})
            record = answer.json()
            if current is None:
                return answer, State(record["digest"], 1.0, True)
            return answer, replace(current, digest=record["digest"])

        self._note(name, send)

    def _toggle(self, name: str) -> None:
        state = self.histories[name].current
        assert state is not None
        self._patch(name, replace(state, enabled=not state.enabled), enabled=not state.enabled)

    def _scale(self, name: str) -> None:
        state, scale = self.histories[name].current, self._random.choice(SCALES)
        assert state is not None
        self._patch(name, replace(state, scale=scale), scale=scale)

    def _patch(self, name: str, to: State, **changes: Any) -> None:
        self._note(name, lambda: (self._client.patch(f"/adapters/{name}", json=changes), to))

    def _delete(self, name: str) -> None:
        self._note(name, lambda: (self._client.delete(f"/adapters/{name}"), None))
