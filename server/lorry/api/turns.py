"""One by one through the event loop: hundreds of requests that come at once must not run in
one turn of it, or whoever asks for the health, cancels or streams would wait for all."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Lets one task go on in each turn of the loop, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False
        """This turn of the loop, or the one in preparation."""

    async def mine(self) -> None:
        """Returns at once where nobody else is about to go on."""
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
