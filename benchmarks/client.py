"""What the load generator itself costs: processor time for each streamed token, ours and httpx's.

A server in another process plays back canned answers of `/generate`, as fast as they are taken,
one write an event. The generator shares the cores with the server it measures, so this
time is taken from the server's.

    python -m benchmarks.client
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Awaitable, Callable

import httpx

from lorry.bench.connection import Address, Connections

REQUESTS, TOKENS, IN_FLIGHT = 200, 64, 8
STEP_SECONDS = 0.005
"""Between two events of an answer: as they come from a model, not all at once."""


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = multiprocessing.Process(target=_serve, args=(listening,), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{port}"
        for name, run in (("lorry.bench", _ours), ("httpx", _httpx)):
            cpu, wall = time.process_time(), time.perf_counter()
            asyncio.run(run(url))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            each = cpu / (REQUESTS * TOKENS)
            print(f"{name:<12} {each * 1e6:6.1f} us of processor time a token, {wall:.1f} s in all")
        server.terminate()


async def _ours(url: str) -> None:
    connections = Connections(Address.of(url))

    async def one() -> None:
        answer = await connections.send("POST", "/generate", b"{}")
        assert sum(1 for _ in answer.events()) == TOKENS

    await _all(one)
    await connections.close()


async def _httpx(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:

        async def one() -> None:
            async with client.stream("POST", "/generate", content=b"{}") as response:
                count = 0
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        time.perf_counter()
                        count += 1
                assert count == TOKENS

        await _all(one)


async def _all(one: Callable[[], Awaitable[None]]) -> None:
    left = list(range(REQUESTS))

    async def worker() -> None:
        while left:
            left.pop()
            await one()

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def _serve(listening: socket.socket) -> None:
    asyncio.run(_answer(listening))


async def _answer(listening: socket.socket) -> None:
    token = {"id": 1234, "text": " word", "logprob": -1.234567, "special": False, "skipped": False}
    event = {"index": 1, "token": token, "generated_text": None, "details": None}
    data = f"data:{json.dumps(event, separators=(',', ':'))}\n\n".encode()
    chunk = f"{len(data):x}\r\n".encode() + data + b"\r\n"
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await _request(reader):
            writer.write(head)
            for _ in range(TOKENS):
                writer.write(chunk)
                await asyncio.sleep(STEP_SECONDS)
            writer.write(b"0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, sock=listening) as server:
        await server.serve_forever()


async def _request(reader: asyncio.StreamReader) -> bool:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    length = next(
        line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    await reader.readexactly(int(length.split(b":")[1]))
    return True


if __name__ == "__main__":
    main()
