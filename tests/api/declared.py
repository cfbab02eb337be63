"""Holds answers to what the OpenAPI document says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
from fastapi import FastAPI

_OF_HTTP = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "date",
        "server",
        "transfer-encoding",
        "vary",
        "access-control-allow-origin",
        "access-control-expose-headers",
    }
)
"""Headers that HTTP and CORS have, and no document lists."""


class Declared:
    """One document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas = document["components"]["schemas"]
        self._headers = document["components"]["headers"]
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), methods)
            for path, methods in document["paths"].items()
        ]

    def problems(self, response: httpx.Response) -> list[str]:
        """What of an answer is not declared. Its body is looked at where it was read."""
        operation = self._operation(response.request)
        if operation is None:
            return []
        where = f"{response.request.method} {response.request.url.path} {response.status_code}"
        return [f"{where}: {problem}" for problem in self._problems(response, operation)]

    def _operation(self, request: httpx.Request) -> dict[str, Any] | None:
        method = "get" if request.method == "HEAD" else request.method.lower()
        # Literal paths come before those with a name in them.
        for pattern, methods in self._paths:
            if method in methods and pattern.fullmatch(request.url.path):
                return methods[method]  # type: ignore[no-any-return]
        return None

    def _problems(self, response: httpx.Response, operation: dict[str, Any]) -> Iterator[str]:
        said = operation["responses"].get(str(response.status_code))
        if said is None:
            yield "the status is not declared"
            return
        for name in response.headers.keys() - _OF_HTTP:
            if name not in {one.lower() for one in said["headers"]}:
                yield f"the header {name} is not declared"
        for name in said["headers"]:
            if self._headers[name].get("required") and name not in response.headers:
                yield f"the header {name} is missing"
        media = response.headers.get("content-type", "").partition(";")[0]
        if media not in said.get("content", {"": None}):
            yield f"the content type {media!r} is not declared"
        elif media == "application/json" and response.request.method != "HEAD":
            yield from self.misfits(response.json(), said["content"][media]["schema"], "body")
        elif media == "text/event-stream" and response.is_stream_consumed:
            data = said["content"][media]["schema"]["properties"]["data"]["contentSchema"]
            yield from self.of_events(response.text, data)

    def of_events(self, text: str, schema: dict[str, Any]) -> Iterator[str]:
        for line in text.splitlines():
            said = line.removeprefix("data:").strip()
            if line.startswith("data:") and said != "[DONE]" and '"error' not in said[:20]:
                yield from self.misfits(json.loads(said), schema, "event")

    def misfits(self, value: Any, schema: dict[str, Any], where: str) -> list[str]:
        """Keys that the schema has not, or that it requires and that are not there, and values
        of another type."""
        if "$ref" in schema:
            return self.misfits(value, self._schemas[schema["$ref"].rpartition("/")[2]], where)
        if "anyOf" in schema:
            tries = [self.misfits(value, one, where) for one in schema["anyOf"]]
            return min(tries, key=len)
        kind = schema.get("type")
        if kind is not None and not _is(value, kind):
            return [f"{where} is no {kind}: {json.dumps(value)[:80]}"]
        for key, wanted in (("const", [schema.get("const")]), ("enum", schema.get("enum"))):
            if key in schema and value not in wanted:
                return [f"{where} is none of {wanted}"]
        found: list[str] = []
        if isinstance(value, list) and "items" in schema:
            for index, one in enumerate(value):
                found += self.misfits(one, schema["items"], f"{where}[{index}]")
        if isinstance(value, dict) and "properties" in schema:
            properties = schema["properties"]
            found += [f"{where}.{key} is not declared" for key in value.keys() - properties.keys()]
            missing = set(schema.get("required", ())) - value.keys()
            found += [f"{where}.{key} is missing" for key in missing]
            for key in value.keys() & properties.keys():
                found += self.misfits(value[key], properties[key], f"{where}.{key}")
        elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
            for key, one in value.items():
                found += self.misfits(one, schema["additionalProperties"], f"{where}.{key}")
        return found


_KNOWN: dict[str, Declared] = {}


def declared_by(app: FastAPI) -> Declared:
    """The document takes a second to make, and servers of one version declare the same answers."""
    if app.version not in _KNOWN:
        _KNOWN[app.version] = Declared(app.openapi())
    return _KNOWN[app.version]


_KINDS = {
    "null": type(None),
    "boolean": bool,
    "string": str,
    "array": list,
    "object": dict,
}


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        whole = isinstance(value, int) or (kind == "number" and isinstance(value, float))
        return whole and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind])
