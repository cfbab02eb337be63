"""One attack on a server: what is sent, the status it must have, and a word that the answer must
say."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from support.patience import PATIENCE

KEY = "key-of-tests"
LONG = "x" * 7000


@dataclass(frozen=True)
class Attack:
    name: str
    status: int
    says: str
    send: Callable[[httpx.Client], tuple[int, str]]
    """Returns the answer's status and text."""


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    more: dict[str, Any] = field(default_factory=dict)

    def __call__(self, http: httpx.Client) -> tuple[int, str]:
        answer = http.request(self.method, self.path, **self.more)
        return answer.status_code, answer.text


@dataclass(frozen=True)
class Raw:
    """Bytes as no client library would send them. `KEY` and `HOST` are filled in."""

    text: str

    def __call__(self, http: httpx.Client) -> tuple[int, str]:
        at = urlsplit(str(http.base_url))
        text = self.text.replace("KEY", KEY).replace("HOST", at.netloc).replace("\n", "\r\n")
        # The end of the connection may overtake the answer where not all was read: rarely.
        for _ in range(5):
            answer = self._answer((at.hostname or "", at.port or 0), text.encode("latin-1"))
            if answer:
                break
        return int(answer.split()[1]), answer.decode("latin-1")

    def _answer(self, address: tuple[str, int], content: bytes) -> bytes:
        answer = b""
        with socket.create_connection(address, PATIENCE) as connection, suppress(ConnectionError):
            # It may have been answered, and hung up on, before all of it was sent.
            with suppress(ConnectionError):
                connection.sendall(content)
            while piece := connection.recv(65536):
                answer += piece
        return answer
