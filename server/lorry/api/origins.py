"""Pages of other origins: none may use the server but those of `--allowed-origins`.

A page in somebody's browser is not the user. A form on any page can post to a server on the
visitor's own machine, uploads included; browsers say so in `Origin`, and nobody else sends it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from lorry.api.errors import CrossSite
from lorry.hostname import ANY

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_SHOWN = ("ETag", "Retry-After", "X-Request-Id", "X-Lorry-Ignored")
"""Headers of an answer that a page may read beside those that it always may."""


class Origins:
    """Which origins' pages may use the server. `allowed` is `--allowed-origins`."""

    def __init__(self, allowed: Collection[str]) -> None:
        self.allowed = frozenset(allowed)

    def __contains__(self, origin: str) -> bool:
        return ANY in self.allowed or origin in self.allowed

    def refusal(self, method: str, headers: Headers) -> CrossSite | None:
        """Why the request of a page gets no answer. Reading is left to the browser, which
        shows an answer to no page that it does not name."""
        origin = headers.get("origin")
        if origin is not None and origin in self:
            return None
        if is_preflight(method, headers):
            return _refused(origin)
        if method in _SAFE:
            return None
        # A browser's own word comes first: behind a proxy, Host may be the proxy's business.
        site = headers.get("sec-fetch-site")
        if site in ("same-origin", "none"):
            return None
        if site is None and (origin is None or urlsplit(origin).netloc == headers.get("host")):
            return None
        return _refused(origin)


class Sharing:
    """ASGI middleware around the guard, whose refusals an allowed page may read, too. What
    it does not allow goes on as it came: the guard refuses it and says why."""

    def __init__(self, app: ASGIApp, *, origins: Origins) -> None:
        self._app = app
        self._origins = origins
        self._cors = CORSMiddleware(
            app,
            allow_origins=origins.allowed,
            allow_methods=("*",),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=_SHOWN,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shared = scope["type"] == "http" and bool(self._origins.allowed)
        if shared:
            headers = Headers(scope=scope)
            foreign = headers.get("origin", "") not in self._origins
            shared = not (foreign and is_preflight(scope["method"], headers))
        await (self._cors if shared else self._app)(scope, receive, send)


def is_preflight(method: str, headers: Headers) -> bool:
    """A browser asks whether it may send what a page wants to send."""
    return (
        method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
    )


def _refused(origin: str | None) -> CrossSite:
    # What a stranger made up is not repeated where somebody may paste it into a shell.
    known = re.fullmatch(r"[\w+.:/\[\]-]{1,253}", origin or "", re.ASCII)
    return CrossSite(
        f"a page of {(origin or 'another site')[:200]} may not use this server; to let the pages "
        f"of an origin use it, start it with --allowed-origins {origin if known else 'ORIGIN'}"
    )
