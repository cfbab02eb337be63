"""The scopes that each route needs: one table for the whole API.

A request needs one of its route's scopes; `admin` is enough everywhere. An application with a route
that is not here, or a row without a route, does not start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from re import Pattern
from typing import Final

from starlette.routing import compile_path

from lorry.access.api_key import Scope
from lorry.api import docs, name_path

Needed = frozenset[Scope]

OPEN: Final[Needed] = frozenset()
"""No key at all."""
_GENERATE: Final[Needed] = frozenset({Scope.GENERATE})
_UPLOAD: Final[Needed] = frozenset({Scope.UPLOAD})
_EITHER: Final[Needed] = frozenset({Scope.GENERATE, Scope.UPLOAD})
_ADMIN: Final[Needed] = frozenset({Scope.ADMIN})

METRICS: Final = "/metrics"
"""Open as long as no key was made by `/keys`; after that it needs one that sees every adapter."""

_ADAPTER: Final = f"/adapters/{{name:{name_path.CONVERTOR}}}"

TABLE: Final[Mapping[str, Needed]] = {
    "POST /": _GENERATE,
    "POST /generate": _GENERATE,
    "POST /generate_stream": _GENERATE,
    "POST /embed": _GENERATE,
    "POST /tokenize": _GENERATE,
    "POST /detokenize": _GENERATE,
    "GET /tokenizer_info": _EITHER,
    "POST /v1/completions": _GENERATE,
    "POST /v1/chat/completions": _GENERATE,
    "POST /v1/responses": _GENERATE,
    "GET /v1/responses/{response_id}": _GENERATE,
    "DELETE /v1/responses/{response_id}": _GENERATE,
    "POST /v1/responses/{response_id}/cancel": _GENERATE,
    "GET /v1/responses/{response_id}/input_items": _GENERATE,
    "POST /v1/messages": _GENERATE,
    "POST /v1/messages/count_tokens": _GENERATE,
    "POST /classify": _GENERATE,
    "POST /score": _GENERATE,
    "POST /v1/score": _GENERATE,
    "POST /rerank": _GENERATE,
    "POST /v1/rerank": _GENERATE,
    "POST /v1/embeddings": _GENERATE,
    "GET /v1/models": _EITHER,
    "GET /v1/models/{model:path}": _EITHER,
    "GET /adapters": _EITHER,
    "POST /adapters": _UPLOAD,
    # The first that fits counts, here and in the router: a name may have slashes.
    f"GET {_ADAPTER}/content": _UPLOAD,
    f"GET {_ADAPTER}": _EITHER,
    f"PUT {_ADAPTER}": _UPLOAD,
    f"PATCH {_ADAPTER}": _UPLOAD,
    f"DELETE {_ADAPTER}": _UPLOAD,
    "GET /unclaimed": _ADMIN,
    "POST /unclaimed": _ADMIN,
    "POST /v1/load_lora_adapter": _UPLOAD,
    "POST /v1/unload_lora_adapter": _UPLOAD,
    "GET /keys": _ADMIN,
    "POST /keys": _ADMIN,
    "GET /keys/{name}": _ADMIN,
    "PATCH /keys/{name}": _ADMIN,
    "DELETE /keys/{name}": _ADMIN,
    "POST /keys/{name}/rotate": _ADMIN,
    "GET /audit": _ADMIN,
    "GET /health/live": OPEN,
    "GET /health/ready": OPEN,
    "GET /health": OPEN,
    "GET /ping": OPEN,
    "POST /ping": OPEN,
    "GET /version": OPEN,
    "GET /info": _EITHER,
    f"GET {METRICS}": _EITHER,
}

OPEN_PATHS: Final = frozenset(
    {route.partition(" ")[2] for route, needed in TABLE.items() if needed == OPEN} | {*docs.PATHS}
)
"""Paths that need no key. The documentation contains no data."""


class RouteScopes:
    """Finds the scopes for a request."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Needed] = {}
        self._patterns: list[tuple[str, Pattern[str], Needed]] = []
        for route, needed in TABLE.items():
            method, _, path = route.partition(" ")
            if "{" in path:
                self._patterns.append((method, compile_path(path)[0], needed))
            else:
                self._exact[method, path] = needed

    def of(self, method: str, path: str) -> Needed | None:
        """Return the scopes of which one is needed; None if there is no such route, and any key
        may be told so."""
        asked = "GET" if method == "HEAD" else method
        exact = self._exact.get((asked, path))
        if exact is not None:
            return exact
        for known, pattern, needed in self._patterns:
            if known == asked and pattern.fullmatch(path):
                return needed
        return None


def check_complete(routes: Iterable[str]) -> None:
    """`routes`: the application's, as in the table."""
    odd = set(routes) ^ TABLE.keys()
    assert not odd, f"a route without scopes, or scopes without a route: {sorted(odd)}"
