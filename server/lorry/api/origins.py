"""Refuses pages of other origins except those of `--allowed-origins`.

A page in somebody's browser is not the user. A form on any page can post to a server on the
visitor's own machine, uploads included. Browsers reveal it in `Origin`, which only they send.
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
"""Headers of an answer that a page may read in addition to the standard ones."""


class Origins:
    """The origins whose pages may use the server. `allowed` is `--allowed-origins`."""

    def __init__(self, allowed: Collection[str]) -> None:
        self.allowed = frozenset(allowed)

    def __contains__(self, origin: str) -> bool:
        return ANY in self.allowed or origin in self.allowed

    def refusal(self, method: str, headers: Headers) -> CrossSite | None:
        """Return why a page's request is refused, or None. Reading is left to the browser, which
        shows an answer only to pages that it names."""
        origin = headers.get("origin")
        if origin is not None and origin in self:
            return None
        if is_preflight(method, headers):
            return _refused(origin)
        if method in _SAFE:
            return None
        # The browser's own statement comes first: behind a proxy, Host may be the proxy's.
        site = headers.get("sec-fetch-site")
        if site in ("same-origin", "none"):
            return None
        if site is None and (origin is None or urlsplit(origin).netloc == headers.get("host")):
            return None
        return _refused(origin)


class Sharing:
    """ASGI middleware around the guard, so that an allowed page can also read the guard's refusals.
    Other requests pass unchanged: the guard refuses them with a reason."""

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
    """Return whether a browser asks if it may send a page's request."""
    return (
        method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
    )


def _refused(origin: str | None) -> CrossSite:
    # Untrusted text is not repeated where somebody may paste it into a shell.
    known = re.fullmatch(r"[\w+.:/\[\]-]{1,253}", origin or "", re.ASCII)
    return CrossSite(
        f"a page of {(origin or 'another site')[:200]} may not use this server; to let the pages "
        f"of an origin use it, start it with --allowed-origins {origin if known else 'ORIGIN'}"
    )
