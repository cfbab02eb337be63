"""Where requests for the engine come in: a full queue refuses them here.

Before the body is read, where that can be told then; before it is parsed and made tokens
at the latest (`visit.arrived`). A refusal costs next to nothing, so that hundreds of them
hold nobody up.
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
    """ASGI middleware. `paths` are those that the engine's requests are posted to."""

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
