"""Reads one HTTP/1.1 answer as its bytes arrive, and notes when each piece of the body did.

It is no general client: it reads what servers of language models send (a status, headers, a
body by length, in chunks or until the end) and looks at nothing else. Events are taken apart
after the run, not while the clock ticks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_HEAD = 1 << 16


class MalformedAnswer(Exception):
    """The bytes are no HTTP answer; the message says why."""


@dataclass(slots=True)
class BenchAnswer:
    """Times are those of the clock that the caller feeds with."""

    status: int = 0
    keeps_open: bool = True
    """The server will take another request on this connection."""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """(time, bytes of the body), in order."""

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    def events(self) -> Iterator[tuple[float, bytes]]:
        """The data of every server-sent event, with the time its last byte came."""
        rest = b""
        for time, piece in self.pieces:
            rest += piece
            if b"\n\n" not in rest and b"\r\n\r\n" not in rest:
                continue
            *blocks, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
            for block in blocks:
                data = [line[5:].lstrip() for line in block.split(b"\n") if line[:5] == b"data:"]
                if data:
                    yield time, b"\n".join(data)

    def reason(self) -> str:
        """What an answer that is no success says, in one line."""
        try:
            found: Any = json.loads(self.body)
        except ValueError:
            found = self.body[:200].decode(errors="replace")
        if isinstance(found, dict):
            found = found.get("error", found.get("detail", found))
        if isinstance(found, dict):
            found = found.get("message", found)
        return f"{self.status}: {' '.join(str(found).split())}"


class AnswerReader:
    """Feed it bytes; `done` once the answer is whole."""

    def __init__(self) -> None:
        self.answer = BenchAnswer()
        self.done = False
        self._rest = b""
        self._read = self._head
        self._length = 0
        """Bytes still to come of the body, or of this chunk."""
        self._until_closed = False

    def feed(self, data: bytes, time: float) -> None:
        """Raises MalformedAnswer."""
        self._rest = self._rest + data if self._rest else data
        found: list[bytes] = []
        while not self.done and self._read(found):
            pass
        if found:
            self.answer.pieces.append((time, found[0] if len(found) == 1 else b"".join(found)))

    def closed(self) -> None:
        """The server closed. Raises MalformedAnswer where more was due."""
        if not self.done:
            if not self._until_closed:
                raise MalformedAnswer("the connection broke off in the middle of an answer")
            self.done = True

    # Each of these takes what it can off `_rest`; False when it needs more bytes.

    def _head(self, found: list[bytes]) -> bool:
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            if len(self._rest) > MAX_HEAD:
                raise MalformedAnswer("no end of the headers in sight")
            return False
        self._rest = rest
        status, *lines = head.split(b"\r\n")
        parts = status.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise MalformedAnswer(f"no HTTP answer: {status[:60]!r}")
        self.answer.status = int(parts[1])
        if self.answer.status == 100:
            return True
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip().lower()
        wish = headers.get(b"connection", b"")
        self.answer.keeps_open = b"close" not in wish and parts[0] != b"HTTP/1.0"
        if b"chunked" in headers.get(b"transfer-encoding", b""):
            self._read = self._chunk_size
        elif b"content-length" in headers:
            self._length = self._number(headers[b"content-length"], 10)
            self._read = self._body
            self.done = self._length == 0
        elif self.answer.status in (204, 304):
            self.done = True
        else:
            self._until_closed = True
            self.answer.keeps_open = False
            self._read = self._all
        return True

    def _body(self, found: list[bytes]) -> bool:
        self._take(found)
        self.done = self._length == 0
        return False

    def _all(self, found: list[bytes]) -> bool:
        self._length = len(self._rest)
        self._take(found)
        return False

    def _chunk_size(self, found: list[bytes]) -> bool:
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            return False
        self._rest = rest
        self._length = self._number(line.partition(b";")[0], 16)
        self._read = self._chunk if self._length else self._trailer
        return True

    def _chunk(self, found: list[bytes]) -> bool:
        self._take(found)
        if self._length or len(self._rest) < 2:
            return False
        if self._rest[:2] != b"\r\n":
            raise MalformedAnswer("a chunk is longer than it says")
        self._rest = self._rest[2:]
        self._read = self._chunk_size
        return True

    def _trailer(self, found: list[bytes]) -> bool:
        line, end, rest = self._rest.partition(b"\r\n")
        if not end:
            return False
        self._rest = rest
        self.done = not line
        return True

    def _take(self, found: list[bytes]) -> None:
        piece = self._rest[: self._length]
        if piece:
            found.append(piece)
            self._rest = self._rest[len(piece) :]
            self._length -= len(piece)

    @staticmethod
    def _number(text: bytes, base: int) -> int:
        try:
            value = int(text, base)
        except ValueError:
            value = -1
        if value < 0:
            raise MalformedAnswer(f"not a length: {text[:30]!r}")
        return value
