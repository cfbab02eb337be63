"""Reads the bytes of a body from a client that may be slow but must come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import Request

from lorry.api.errors import BodyTooSlow, UnsupportedMediaType

PATIENCE: Final = 120.0
"""Seconds without a byte."""

PACE: Final = 1 << 10
"""Bytes per second, on average, that a body must arrive with after that time."""


async def arriving(request: Request) -> AsyncGenerator[bytes]:
    """Yield the body in chunks. Raises BodyTooSlow, and ClientDisconnect if the client is gone."""
    clock = asyncio.get_running_loop().time
    began, received = clock(), 0
    stream = request.stream()
    while True:
        latest = min(clock(), began + received / PACE) + PATIENCE
        try:
            async with asyncio.timeout_at(latest):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BodyTooSlow(
                f"the body arrives too slowly: {received} bytes in {clock() - began:.0f} s; send "
                f"at least {PACE} bytes per second, with no pause of over {PATIENCE:.0f} s"
            ) from None
        received += len(chunk)
        yield chunk


def check_encoding(request: Request) -> None:
    """Raise UnsupportedMediaType if the whole body is compressed."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        error = UnsupportedMediaType(
            f"a body with Content-Encoding: {encoding[:40]} is not decoded here; send it as it is"
        )
        error.param = "Content-Encoding"
        raise error
