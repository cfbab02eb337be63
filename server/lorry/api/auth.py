"""Access control: the API key, and refusal of browsers on other sites, by origin and host name.

These are open without a key: health (a supervisor has no key), `/metrics` (a scraper has none; it
shows names and counts, no text), and the documentation, which contains no data.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lorry.api import docs
from lorry.api.errors import HttpError, Unauthorized
from lorry.api.hosts import Hosts
from lorry.api.origins import Origins
from lorry.api.refusal import refuse
from lorry.metrics import Metrics

OPEN_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/ping", "/version", "/metrics", *docs.PATHS}
)

_OWNER = "owner"


class Guard:
    """ASGI middleware: passes a request on or refuses it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts,
        origins: Origins,
        api_key: str | None,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        # Digests have one length, so the time of the comparison reveals nothing about the key's.
        self._key = None if api_key is None else _digest(api_key.encode())
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = (
            self._hosts.refusal(headers.getlist("host"))
            # Before the key: a browser that asks for a page sends none.
            or self._origins.refusal(scope["method"], headers)
            or self._unauthorized(scope, headers)
        )
        if refusal is None:
            if self._key is not None:
                scope.setdefault("state", {})[_OWNER] = self._key.hex()
            await self._app(scope, receive, send)
            return
        await refuse(refusal, scope, receive, send, self._metrics)

    def _unauthorized(self, scope: Scope, headers: Headers) -> HttpError | None:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = {
            "Authorization": bearer.strip() if scheme.lower() == "bearer" else "",
            "x-api-key": headers.get("x-api-key", "").strip(),
        }
        if not any(given.values()):
            return Unauthorized(
                "this server requires a key: send Authorization: Bearer KEY, or x-api-key: KEY"
            )
        # Headers are decoded from latin-1, so this restores the client's bytes.
        keys = [_digest(one.encode("latin-1")) for one in given.values() if one]
        if any(hmac.compare_digest(one, self._key) for one in keys):
            return None
        wrong = " and ".join(name for name, one in given.items() if one)
        return Unauthorized(f"the key in {wrong} is not this server's")


def owner_of(scope: Scope) -> str:
    """Return the owner of what this request makes: whoever has the key that it came with."""
    owner: str = scope.get("state", {}).get(_OWNER, "")
    return owner


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
