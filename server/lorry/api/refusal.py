"""Answers a request that is refused before it reaches a route."""

from __future__ import annotations

import contextlib

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from lorry.api.bodies import drop_unread
from lorry.api.errors import count, respond
from lorry.metrics import Metrics


async def refuse(
    error: Exception, scope: Scope, receive: Receive, send: Send, metrics: Metrics
) -> None:
    count(error, metrics)
    with contextlib.suppress(ClientDisconnect):
        await drop_unread(Request(scope, receive))
    await respond(scope["path"], error)(scope, receive, send)
