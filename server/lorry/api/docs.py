"""OpenAPI: bodies that routes read themselves, and every schema they use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route with that JSON body."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI, kinds: Sequence[type[BaseModel]]) -> None:
    """Serve an OpenAPI document that holds `kinds` beside what FastAPI finds by itself."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _drop_fastapi_s_refusals(document)
            _, found = models_json_schema(
                [(kind, "validation") for kind in kinds], ref_template=_REF
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in found.get("$defs", {}).items():
                schemas.setdefault(name, schema)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_fastapi_s_refusals(document: dict[str, Any]) -> None:
    """FastAPI adds a 422 of its own shape to every route with a parameter. No answer here has
    that shape, and a path takes any text."""
    for methods in document["paths"].values():
        for operation in methods.values():
            refusal = operation["responses"].get("422")
            if refusal is not None and "HTTPValidationError" in str(refusal):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
