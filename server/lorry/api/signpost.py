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
    likeness: dict[str, float] = {}
    for route in routes:
        taken, _, template = route.partition(" ")
        filled, alike = _compared(template, path)
        methods.setdefault(filled, []).append(taken)
        likeness[filled] = max(alike, likeness.get(filled, 0.0))
    close = max(likeness, key=lambda filled: likeness[filled], default="")
    if likeness.get(close, 0.0) < _ALIKE:
        return None
    known = methods[close]
    return f"{method if method in known else known[0]} {close}"


def _compared(template: str, path: str) -> tuple[str, float]:
    """Return the template with the names in the path filled in (`/adapters/pirate`), and how
    similar its own parts are to the path's, from 0 to 1. A name that fits any path counts for
    nothing."""
    parts, given = template.split("/"), path.split("/")
    if len(parts) == len(given):
        filled = [m if p.startswith("{") else p for p, m in zip(parts, given, strict=True)]
        given = ["" if p.startswith("{") else m for p, m in zip(parts, given, strict=True)]
        template, parts = "/".join(filled), ["" if p.startswith("{") else p for p in parts]
    return template, difflib.SequenceMatcher(None, "/".join(parts), "/".join(given)).ratio()
