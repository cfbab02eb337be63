"""How long a connection may take for a request's head, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from lorry.api.heads import BoundedProtocol
from support.patience import PATIENCE

REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
HALF = REQUEST[:-2]
"""A head that goes on."""


class Application:
    """Answers after it was allowed to, and reads no body."""

    def __init__(self, *, allowed: bool = False) -> None:
        self.asked, self.allowed = asyncio.Event(), asyncio.Event()
        if allowed:
            self.allowed.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.set()
        await self.allowed.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class Client:
    """A connection, and the server's end of it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: BoundedProtocol
    ) -> None:
        self.reader, self.writer, self.there = reader, writer, there

    async def get(self) -> None:
        self.writer.write(REQUEST)
        assert (await self.reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")

    async def until(self, condition: Callable[[BoundedProtocol], object]) -> None:
        """Return when the server has read so far."""
        while not condition(self.there):
            await asyncio.sleep(0)

    def late(self) -> None:
        """Let the time for a head pass, if it runs."""
        if self.there._timer is not None:
            self.there._timer.cancel()
            self.there._too_late()


@asynccontextmanager
async def connected(
    application: Application, patience: float = 2 * PATIENCE
) -> AsyncIterator[Client]:
    config = Config(application, lifespan="off", timeout_keep_alive=int(2 * PATIENCE))
    config.load()
    made: list[BoundedProtocol] = []

    def make() -> BoundedProtocol:
        made.append(BoundedProtocol(config, ServerState(), {}, patience=patience))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not made:
            await asyncio.sleep(0)
        try:
            yield Client(reader, writer, made[0])
        finally:
            writer.close()
            server.close()


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def synchronous(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return synchronous


@run
async def test_a_connection_that_sends_nothing_is_closed() -> None:
    async with connected(Application(), patience=0.01) as client:
        assert await client.reader.read() == b""


@run
async def test_a_dripping_head_gets_no_more_time() -> None:
    async with connected(Application()) as client:
        timer = client.there._timer
        client.writer.write(HALF)
        for _ in range(20):
            before = client.there._since
            client.writer.write(b"x-drip: 1\r\n")
            await client.until(lambda there, before=before: there._since > before)
        assert client.there._timer is timer is not None
        client.late()
        assert (await client.reader.read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("begin", [b"G", HALF])
@run
async def test_half_a_head_is_answered_408(begin: bytes) -> None:
    async with connected(Application()) as client:
        client.writer.write(begin)
        await client.until(lambda there: there._begun)
        client.late()
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ") and b"took more than" in answer


@run
async def test_neither_an_answer_nor_its_body_is_cut() -> None:
    """Bodies have limits of their own."""
    application = Application()
    async with connected(application) as client:
        client.writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 4\r\n\r\nab")
        await application.asked.wait()
        client.late()
        client.writer.write(b"cd" + HALF)
        await client.until(lambda there: there._begun)
        # The answer before this head must not be cut.
        client.late()
        application.allowed.set()
        assert (await client.reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        client.late()
        assert b"HTTP/1.1 408 " in await client.reader.read()


@run
async def test_bytes_between_requests_do_not_keep_a_connection() -> None:
    """They end uvicorn's wait for the next request."""
    async with connected(Application(allowed=True)) as client:
        await client.get()
        client.writer.write(b"\r\n")
        await client.until(lambda there: there._timer)
        client.late()
        assert await client.reader.read() == b""


@run
async def test_the_rest_of_a_body_that_was_answered_does_not_keep_it() -> None:
    async with connected(Application(allowed=True)) as client:
        client.writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 9\r\n\r\n")
        await client.reader.readuntil(b"ok")
        client.writer.write(b"a")
        await client.until(lambda there: there._timer)
        client.late()
        assert await client.reader.read() == b""


@run
async def test_several_requests_on_one_connection() -> None:
    async with connected(Application(allowed=True)) as client:
        for _ in range(3):
            await client.get()
            # uvicorn's wait for the next one is the user's setting.
            client.late()
