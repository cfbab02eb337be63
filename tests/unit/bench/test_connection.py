"""Connections against a real socket that behaves well, and less well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lorry.bench.connection import Address, BadUrl, Broken, Connections
from support.patience import PATIENCE

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


async def heard(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(length)


def with_server(serve: Serve, act: Callable[[Connections], Awaitable[None]]) -> int:
    """Runs `act` against `serve`; how many connections were made."""
    made = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(counted, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connections = Connections(Address.of(f"http://127.0.0.1:{port}/under/"), {"x-key": "abc"})
        async with asyncio.timeout(PATIENCE):
            await act(connections)
        await connections.close()
        server.close()

    asyncio.run(run())
    return made


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await heard(reader)
        writer.write(OK)


def test_a_request_is_what_a_server_expects() -> None:
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await heard(reader))
        writer.write(OK)

    async def act(connections: Connections) -> None:
        assert (await connections.send("POST", "/generate", b"{}")).body == b"hi"

    with_server(serve, act)
    (request,) = seen
    assert request.startswith(b"POST /under/generate HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nx-key: abc\r\ncontent-length: 2\r\n\r\n{}" in request


def test_one_after_the_other_share_a_connection_and_at_once_have_their_own() -> None:
    async def one_by_one(connections: Connections) -> None:
        for _ in range(5):
            assert (await connections.send("GET", "/")).status == 200

    async def at_once(connections: Connections) -> None:
        await asyncio.gather(*(connections.send("GET", "/") for _ in range(5)))
        await asyncio.gather(*(connections.send("GET", "/") for _ in range(5)))

    assert with_server(polite, one_by_one) == 1
    assert with_server(polite, at_once) == 5


def test_a_connection_closed_while_idle_costs_nothing() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader)
        writer.write(OK)

    async def act(connections: Connections) -> None:
        for _ in range(3):
            assert (await connections.send("GET", "/")).body == b"hi"

    assert with_server(once, act) == 3


def test_a_server_that_hangs_up_in_an_answer_is_told_of() -> None:
    async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard(reader)
        writer.write(OK[:-1])

    async def act(connections: Connections) -> None:
        with pytest.raises(Broken, match="broke off"):
            await connections.send("GET", "/")

    with_server(cut_short, act)


def test_an_answer_that_was_given_up_does_not_come_to_the_next_request() -> None:
    asked, given_up = asyncio.Event(), asyncio.Event()

    async def slow_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await heard(reader)
        if b"GET /under/slow" in request:
            asked.set()
            await given_up.wait()
            writer.write(OK.replace(b"hi", b"no"))
        else:
            writer.write(OK)
        await heard(reader)

    async def act(connections: Connections) -> None:
        slow = asyncio.create_task(connections.send("GET", "/slow"))
        await asked.wait()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        given_up.set()
        assert (await connections.send("GET", "/")).body == b"hi"

    assert with_server(slow_first, act) == 2


def test_nobody_there_is_told_of() -> None:
    async def act() -> None:
        with pytest.raises(Broken):
            await Connections(Address.of("http://127.0.0.1:9")).send("GET", "/")

    asyncio.run(act())


def test_places() -> None:
    assert Address.of("http://a.example") == Address("a.example", 80, False, "")
    assert Address.of("https://a.example/v/") == Address("a.example", 443, True, "/v")
    assert b"host: [::1]:81\r\n" in Address.of("http://[::1]:81").head("GET", "/", {}, 0)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:port"])
def test_no_place(url: str) -> None:
    with pytest.raises(BadUrl):
        Address.of(url)
