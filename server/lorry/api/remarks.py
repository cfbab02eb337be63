"""A header of the answer about the request: fields that were accepted and not used."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

IGNORED: Final = "X-Lorry-Ignored"

_KEY = "remarks"
_MOST: Final = 30
"""The most names in the header."""

_STRANGE: Final = re.compile(r"[^A-Za-z0-9_.\-]")


class Remarks:
    """The remarks about one request."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        """True if unknown fields are refused."""
        self.ignored: dict[str, None] = {}
        """Names that are valid in a header, in the order of the body."""

    def ignore(self, names: Iterable[str]) -> None:
        for name in names:
            self.ignored.setdefault(_STRANGE.sub("?", name[:60]))

    @property
    def header(self) -> str:
        names = list(self.ignored)
        return ", ".join(names[:_MOST] + ["..."] * (len(names) > _MOST))


class Remarking:
    """ASGI middleware: `X-Lorry-Ignored`, and a line in the log at `debug`."""

    def __init__(self, app: ASGIApp, *, strict: bool) -> None:
        self._app = app
        self._strict = strict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        remarks = Remarks(strict=self._strict)
        scope.setdefault("state", {})[_KEY] = remarks

        async def remarked(message: Message) -> None:
            if remarks.ignored and message["type"] == "http.response.start":
                MutableHeaders(scope=message)[IGNORED] = remarks.header
                logger.debug("fields were ignored", extra={"fields": remarks.header})
            await send(message)

        await self._app(scope, receive, remarked)


def remarks_of(request: Request) -> Remarks:
    remarks = request.scope.get("state", {}).get(_KEY)
    return remarks if isinstance(remarks, Remarks) else Remarks(strict=True)
