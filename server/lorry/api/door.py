"""Refuses requests for the engine if the queue is full.

The check runs before the body is read if possible, otherwise at the latest before it is parsed and
tokenized (`visit.arrived`). A refusal costs next to nothing, so hundreds of them delay nobody.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from lorry.api.refusal import refuse
from lorry.api.turns import Turns
from lorry.api.visit import Visit
from lorry.engine.client import EngineClient
from lorry.errors import RequestError
from lorry.metrics import Metrics


class Door:
    """ASGI middleware. `paths` are the paths of requests for the engine."""

    def __init__(
        self, app: ASGIApp, *, client: EngineClient, paths: Collection[str], metrics: Metrics
    ) -> None:
        self._app = app
        self._client = client
        self._paths = frozenset(paths)
        self._metrics = metrics
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        await self._turns.mine()
        try:
            visit = Visit(self._client, self._turns, scope)
        except RequestError as error:
            await refuse(error, scope, receive, send, self._metrics)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            visit.leave()
