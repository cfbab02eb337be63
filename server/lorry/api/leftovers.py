"""Returns memory to the system after uploads and long bodies.

glibc keeps freed memory for each thread, and threads take turns at uploads: a hundred refused ones
would leave the server larger by hundreds of megabytes, for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGE: Final = 64 << 10
"""Bytes of a body after which memory is returned; it always is after an upload."""

PAUSE: Final = 1.0
"""The least seconds between two times: each takes some milliseconds of a processor."""


class Leftovers:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, give_back: Callable[[], None]) -> None:
        """`give_back` is called in a thread."""
        self._app = app
        self._give_back = give_back
        self._wanted = False
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            if received >= LARGE or (received and scope["path"].startswith("/adapters")):
                self._wanted = True
                if self._work is None or self._work.done():
                    self._work = asyncio.create_task(self._until_done())

    async def _until_done(self) -> None:
        while self._wanted:
            self._wanted = False
            await asyncio.to_thread(self._give_back)
            await asyncio.sleep(PAUSE)
