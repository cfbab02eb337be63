"""The answer to an unknown path: the existing routes, and the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_LONG = 200
"""Characters of a path that are compared."""

_ALIKE = 0.75


def routes_of(document: dict[str, Any]) -> list[str]:
    """Return all routes of an OpenAPI document, as `POST /generate`."""
    return [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    ]


def nearest(routes: Iterable[str], method: str, path: str) -> str | None:
    """Return the route whose path is most similar to `path`, with this method if it takes it."""
    method, path = "GET" if method == "HEAD" else method, path[:_LONG]
    methods: dict[str, list[str]] = {}
    for route in routes:
        taken, _, template = route.partition(" ")
        methods.setdefault(_filled(template, path), []).append(taken)
    close = difflib.get_close_matches(path, methods, n=1, cutoff=_ALIKE)
    if not close:
        return None
    known = methods[close[0]]
    return f"{method if method in known else known[0]} {close[0]}"


def _filled(template: str, path: str) -> str:
    """Return the template with the names in the path filled in: `/adapters/pirate`."""
    parts, given = template.split("/"), path.split("/")
    if len(parts) != len(given):
        return template
    return "/".join(
        mine if part.startswith("{") else part for part, mine in zip(parts, given, strict=True)
    )
