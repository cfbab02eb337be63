"""The bytes of a body as they come, from a client that may be slow but does come to an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import Request

from lorry.api.errors import BodyTooSlow, UnsupportedMediaType

PATIENCE: Final = 120.0
"""Seconds without a byte."""

PACE: Final = 1 << 10
"""Bytes a second, on the whole, that a body has to come with after that time."""


async def arriving(request: Request) -> AsyncGenerator[bytes]:
    """The body in chunks. Raises BodyTooSlow; ClientDisconnect where the client went away."""
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
                f"the body comes too slowly: {received} bytes in {clock() - began:.0f} s; send it "
                f"at {PACE} bytes a second or more, with no pause of over {PATIENCE:.0f} s"
            ) from None
        received += len(chunk)
        yield chunk


def check_encoding(request: Request) -> None:
    """Raises UnsupportedMediaType for a body that is compressed as a whole."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        error = UnsupportedMediaType(
            f"a body with Content-Encoding: {encoding[:40]} is not unpacked here; send it as it is"
        )
        error.param = "Content-Encoding"
        raise error
