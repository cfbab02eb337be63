"""HTTP methods: HEAD wherever GET exists, and all methods of a path for `Allow`."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Head:
    """ASGI middleware: answers HEAD like GET, without the body. The routes know only GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


def methods_of(app: FastAPI, path: str) -> list[str]:
    """Return all methods of `path`. A route knows only its own, and a path can have several."""
    taken = []
    for method in _METHODS:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        if any(route.matches(scope)[0] is Match.FULL for route in app.routes):
            taken += ["GET", "HEAD"] if method == "GET" else [method]
    return taken
