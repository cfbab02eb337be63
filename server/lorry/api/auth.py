"""Access control: keys with their scopes and limits, and refusal of browsers on other sites, by
origin and host name.

These are open without a key: health (a supervisor has no key), and the page and the documentation,
which contain no data. `/metrics` shows names and counts, no text; it is open too (a scraper has no
key) until there are keys for different adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lorry.access import caller
from lorry.access.access_control import AccessControl
from lorry.access.api_key import KeyRecord
from lorry.access.caller import ANYONE, Caller
from lorry.access.keyring import Keyring
from lorry.access.quota import Pass
from lorry.api import page
from lorry.api.errors import Unauthorized
from lorry.api.hosts import Hosts
from lorry.api.origins import Origins
from lorry.api.refusal import refuse
from lorry.api.route_scopes import METRICS, OPEN_PATHS, RouteScopes
from lorry.errors import LorryError, ScopeMissing
from lorry.metrics import Metrics

_PASS = "pass"


class Guard:
    """ASGI middleware: passes a request on or refuses it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts,
        origins: Origins,
        access: AccessControl,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._keyring = access.keyring
        self._quotas = access.quotas
        self._scopes = RouteScopes()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal: LorryError | None = (
            self._hosts.refusal(headers.getlist("host"))
            # Before the key: a browser that asks for a page sends none.
            or self._origins.refusal(scope["method"], headers)
        )
        permit: Pass | None = None
        if refusal is None:
            try:
                permit = self._admit(scope, headers)
            except LorryError as error:
                refusal = error
        if refusal is not None:
            await refuse(refusal, scope, receive, send, self._metrics)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if permit is not None:
                permit.leave()

    def _admit(self, scope: Scope, headers: Headers) -> Pass | None:
        """Find the key and check it. Raises Unauthorized, ScopeMissing, RateLimited."""
        path, keyring = scope["path"], self._keyring
        address = scope["client"][0] if scope.get("client") else ""
        if not keyring.asks:
            caller.enter(Caller(ANYONE, address))
            return None
        if (
            path in OPEN_PATHS
            or page.is_open(scope["method"], path)
            or (path == METRICS and not keyring.has_stored)
        ):
            caller.enter(None)
            return None
        key = _key_of(headers, keyring)
        self._check_scope(key, scope["method"], path)
        permit = self._quotas.enter(key)
        limited = key.limits.tokens_per_minute is not None
        spend = partial(self._quotas.spend, key) if limited else None
        caller.enter(Caller(key, address, spend))
        scope.setdefault("state", {})[_PASS] = permit
        return permit

    def _check_scope(self, key: KeyRecord, method: str, path: str) -> None:
        needed = self._scopes.of(method, path)
        if needed is not None and not key.may(needed):
            raise ScopeMissing(
                f"key {key.name!r} is for {_listed(key.scopes)}; {method} {path[:200]} needs one "
                f"for {_listed(needed, 'or')}"
            )
        if path == METRICS and key.adapters is not None:
            raise ScopeMissing(
                f"key {key.name!r} sees only some adapters, and {METRICS} names all; use one "
                "without a list of adapters"
            )


def keep_pass(request: Request) -> Callable[[], None]:
    """Count a request as running after its answer. Return the function to call at its end."""
    permit: Pass | None = request.scope.get("state", {}).get(_PASS)
    return permit.keep() if permit is not None else lambda: None


def _key_of(headers: Headers, keyring: Keyring) -> KeyRecord:
    """Return the key that a request came with. Raises Unauthorized."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = {
        "Authorization": bearer.strip() if scheme.lower() == "bearer" else "",
        "x-api-key": headers.get("x-api-key", "").strip(),
    }
    if not any(given.values()):
        raise Unauthorized(
            "this server requires a key: send Authorization: Bearer KEY, or x-api-key: KEY"
        )
    # Headers are decoded from latin-1, so this restores the client's bytes.
    found = [keyring.find(one.encode("latin-1")) for one in given.values() if one]
    for key in found:
        if key is not None:
            return key
    wrong = " and ".join(name for name, one in given.items() if one)
    raise Unauthorized(f"the key in {wrong} is not this server's")


def _listed(scopes: frozenset[str], word: str = "and") -> str:
    return f" {word} ".join(sorted(scopes))
