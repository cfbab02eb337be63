"""Memory goes back after what was large, not after every request, and after the last of many."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from lorry.api import leftovers
from lorry.api.leftovers import LARGE, Leftovers


class Counted:
    """An application that reads bodies, and how often memory was given back after them."""

    def __init__(self) -> None:
        self.times = 0
        self.app = Leftovers(self._read, give_back=self._give_back)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    def _give_back(self) -> None:
        self.times += 1

    async def post(self, path: str, *chunks: bytes) -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
        ]
        messages.append({"type": "http.request"})

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            raise AssertionError("nothing is answered here")

        await self.app({"type": "http", "path": path}, receive, send)

    async def settle(self) -> int:
        if self.app._work is not None:
            await self.app._work
        return self.times


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "PAUSE", 0.01)


@pytest.mark.parametrize(
    ("path", "chunks", "times"),
    [
        ("/generate", [b"{}"], 0),
        ("/generate", [bytes(LARGE - 1), b"x"], 1),
        ("/adapters", [b"--x"], 1),
        ("/adapters/legal", [b"--x"], 1),
        ("/adapters", [], 0),
    ],
)
def test_after_what_is_large(path: str, chunks: list[bytes], times: int) -> None:
    async def run() -> int:
        server = Counted()
        await server.post(path, *chunks)
        return await server.settle()

    assert asyncio.run(run()) == times


def test_after_the_last_of_many() -> None:
    async def run() -> int:
        server = Counted()
        await asyncio.gather(*(server.post("/adapters", b"x") for _ in range(20)))
        together = await server.settle()
        await server.post("/adapters", b"x")
        assert await server.settle() == together + 1
        return together

    assert asyncio.run(run()) in (1, 2)


def test_after_one_that_failed() -> None:
    async def run() -> int:
        server = Counted()

        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            raise RuntimeError("as a broken connection does")

        server.app._app = failing
        with pytest.raises(RuntimeError):
            await server.post("/adapters", b"x")
        return await server.settle()

    assert asyncio.run(run()) == 1
