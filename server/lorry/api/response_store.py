"""Stores responses, for clients that retrieve them or continue from one.

They are in memory, for a stated time and within a limit on bytes: the oldest are dropped first.
Each contains the whole conversation before it, so none depends on another. Event loop only.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_OVERHEAD = 1024
"""Bytes of an entry beside its texts."""


@dataclass(frozen=True, slots=True)
class Stored:
    owner: str
    """The owner of the key that made it; it is hidden from all others."""
    response: bytes
    items: bytes
    """The model's input as JSON: the earlier conversation and its own input."""
    until: float

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items) + _OVERHEAD

    def answer(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.response)
        return made

    def given(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.items)
        return items


class ResponseStore:
    def __init__(
        self, max_bytes: int, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._clock = clock
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        """In the order in which they expire: all are kept for the same time."""
        self.bytes = 0

    def put(self, owner: str, response: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
        """Store a response with `store` set to true, unless it is larger than the whole limit. It
        replaces an earlier state of the same response."""
        self._drop(response["id"])
        response["store"] = True
        one = Stored(owner, _encoded(response), _encoded(items), self._clock() + self._seconds)
        if self._seconds == 0 or one.size > self._max_bytes:
            response["store"] = False
            return
        self._stored[response["id"]] = one
        self.bytes += one.size
        self._sweep()

    def get(self, owner: str, response_id: str) -> Stored | None:
        self._sweep()
        one = self._stored.get(response_id)
        return one if one is not None and one.owner == owner else None

    def remove(self, owner: str, response_id: str) -> bool:
        if self.get(owner, response_id) is None:
            return False
        self._drop(response_id)
        return True

    def _drop(self, response_id: str) -> None:
        one = self._stored.pop(response_id, None)
        self.bytes -= one.size if one is not None else 0

    def _sweep(self) -> None:
        now = self._clock()
        while self._stored:
            oldest = next(iter(self._stored.values()))
            if oldest.until > now and self.bytes <= self._max_bytes:
                return
            self.bytes -= self._stored.popitem(last=False)[1].size


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
