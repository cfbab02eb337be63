"""Lets requests through the event loop one by one. Hundreds that arrive together must not run in
one turn of the loop, or health checks, cancellations and streams would wait for all of them."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Lets one task continue in each turn of the loop, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False
        """True if this turn of the loop, or the one in preparation, is taken."""

    async def mine(self) -> None:
        """Wait for a turn. Returns at once if no other task is about to continue."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._take(loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        self._taken = True
        loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._taken = False
        while self._waiting:
            turn = self._waiting.popleft()
            # Done: its client has gone.
            if not turn.done():
                turn.set_result(None)
                self._take(loop)
                return
