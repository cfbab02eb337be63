"""`X-Request-Id`: a request's name, from its client or made here, in its answer and in all of its
log lines."""

from __future__ import annotations

import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorry import logs

HEADER: Final = "X-Request-Id"

_KEY = "request_id"
_GOOD: Final = re.compile(r"[!-~]{1,128}")
"""Names that fit in a header and a log line; a client's other names are not used."""


class RequestId:
    """ASGI middleware, around all the others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _GOOD.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})[_KEY] = name
        # The web server gives each request its own task and context.
        logs.request_id.set(name)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self._app(scope, receive, named)


def request_id_of(scope: Scope) -> str | None:
    name = scope.get("state", {}).get(_KEY)
    return name if isinstance(name, str) else None
