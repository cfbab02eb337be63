"""The path prefix of the server behind a proxy.

A proxy may pass the whole path on or remove its prefix; both work. The prefix is added wherever a
client sees our paths: redirects, the documentation, the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import ip_network

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lorry.errors import SettingsError
from lorry.hostname import address_of, url_prefix

_KEY = "prefix"

_HEADER = "x-forwarded-prefix"


class Prefix:
    """ASGI middleware, around everything that reads the path or changes the peer."""

    def __init__(
        self, app: ASGIApp, *, root_path: str, proxies: Sequence[str], own: Collection[str]
    ) -> None:
        """`root_path` is `--root-path`, `proxies` is `--trusted-proxies`, `own` are the server's
        own paths."""
        self._app = app
        self._root_path = root_path
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._own = frozenset(own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            forwarded = self._forwarded(scope)
            prefix = self._root_path if forwarded is None else forwarded
            if prefix:
                scope = {**scope, "state": {**scope.get("state", {}), _KEY: prefix}}
                if f"{scope['path']}/".startswith(f"{prefix}/") and not begins(prefix, self._own):
                    scope["path"] = scope["path"].removeprefix(prefix) or "/"
        await self._app(scope, receive, send)

    def _forwarded(self, scope: Scope) -> str | None:
        """Return a trusted proxy's prefix, or None if it sends none or something else than a
        path."""
        given = Headers(scope=scope).get(_HEADER)
        if given is None:
            return None
        peer = address_of((scope.get("client") or ("",))[0])
        if peer is None or not any(peer in one for one in self._proxies):
            return None
        try:
            return url_prefix(given)
        except ValueError:
            return None


def prefix_of(scope: Scope) -> str:
    """Return the prefix of our paths for this request's client, which is mostly empty."""
    prefix: str = scope.get("state", {}).get(_KEY, "")
    return prefix


def begins(prefix: str, paths: Collection[str]) -> bool:
    """Return whether one of `paths` is `prefix` or below it."""
    return any(f"{path}/".startswith(f"{prefix}/") for path in paths)


def check_root_path(root_path: str, own: Collection[str]) -> None:
    """Raise SettingsError if the server's own paths begin with it."""
    if root_path and begins(root_path, own):
        raise SettingsError(
            f"--root-path {root_path}: paths of the server itself begin with it; give only the "
            "prefix that the proxy adds"
        )
