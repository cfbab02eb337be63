"""Leaves the answer's `X-Request-Id` to Ray's proxy, which adds one to every answer.

The proxy also puts the name that it chose into the request, so ours would be the same again.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorry.api.request_id import HEADER


class NamedByProxy:
    """ASGI middleware, around all the others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def unnamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[HEADER]
            await send(message)

        await self._app(scope, receive, unnamed)
