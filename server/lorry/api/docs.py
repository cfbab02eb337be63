"""OpenAPI and the page that shows it: bodies that routes read themselves, all schemas, examples,
and the routes that need a key. The page loads nothing from other sites."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from lorry.api.prefix import prefix_of
from lorry.api.remarks import IGNORED
from lorry.api.request_id import HEADER as REQUEST_ID

PAGE = "/docs"
DOCUMENT = "/openapi.json"

_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
"""Swagger UI as packaged by fastapi-offline; nothing else of that package is used."""

PATHS = (PAGE, DOCUMENT, *(f"{PAGE}/{name}" for name in _FILES))

_ICON = (
    "data:image/svg+xml,<svg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 100 100%22>"
    "<text y=%22.9em%22 font-size=%2290%22>🚚</text></svg>"
)

_REF = "#/components/schemas/{model}"
_HEADER = "#/components/headers/{name}"

_HEADERS: Mapping[str, Mapping[str, Any]] = {
    REQUEST_ID: {
        "description": "The request's name in the server's log: the one that came with it, or a "
        "new one",
        "required": True,
    },
    IGNORED: {"description": "Fields of the body that were accepted and had no effect"},
    "Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to send a key"},
    "ETag": {"description": "The digest of the current version, in quotes", "required": True},
    "Content-Disposition": {"description": "A name for the file", "required": True},
    "Cache-Control": {"description": "no-cache, with events; no-store, with a new key"},
    "X-Accel-Buffering": {"description": "no, with events: nginx passes each on at once"},
}
"""Headers of answers, beside those of HTTP itself."""

_ALWAYS = (REQUEST_ID,)
_OF_BODIES = (IGNORED,)
_OF_EVENTS = ("Cache-Control", "X-Accel-Buffering")
_OF_STATUS = {
    "401": ("WWW-Authenticate",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
    "529": ("Retry-After",),
}

_EVENTS = "text/event-stream"

PLAIN: Mapping[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
"""The `content` of a plain text answer."""


def json_body(kind: type[BaseModel], example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the `openapi_extra` of a route with that JSON body. `example` must succeed as it
    is."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["example"] = dict(example)
    return {"requestBody": {"required": True, "content": {"application/json": media}}}


def events_of(name: str) -> dict[str, Any]:
    """Return the `content` of a stream whose events contain JSON of the schema `name`."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(model=name)},
    }
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {_EVENTS: {"schema": event}}


def headers(*names: str) -> dict[str, Any]:
    """Return the `headers` of an answer."""
    return {name: {"$ref": _HEADER.format(name=name)} for name in names}


def install(
    app: FastAPI, kinds: Sequence[type[BaseModel]], *, keyed: bool, open_paths: Collection[str]
) -> None:
    """Serve an OpenAPI document, with `kinds` beside the schemas that FastAPI finds, and its page.
    `keyed`: requests need a key, except on `open_paths`."""

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
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for name, schema in found.get("$defs", {}).items():
                schemas.setdefault(name, schema)
            components["headers"] = {
                name: {"schema": {"type": "string"}, **header} for name, header in _HEADERS.items()
            }
            for operation in _operations(document):
                _complete(operation)
            components["securitySchemes"] = {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The server's --api-key, or a key made by POST /keys",
                }
            }
            document["security"] = [{"key": []}] if keyed else [{}, {"key": []}]
            for path in open_paths:
                for operation in document["paths"].get(path, {}).values():
                    operation["security"] = []
            app.openapi_schema = document
        return app.openapi_schema

    async def document(request: Request) -> Response:
        prefix = prefix_of(request.scope)
        return JSONResponse({**openapi(), "servers": [{"url": prefix or "/"}]})

    async def page(request: Request) -> Response:
        prefix = prefix_of(request.scope)
        return get_swagger_ui_html(
            openapi_url=prefix + DOCUMENT,
            title=app.title,
            swagger_js_url=f"{prefix}{PAGE}/swagger-ui-bundle.js",
            swagger_css_url=f"{prefix}{PAGE}/swagger-ui.css",
            swagger_favicon_url=_ICON,
            swagger_ui_parameters={"tryItOutEnabled": True},
        )

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_route(DOCUMENT, document, methods=["GET"], include_in_schema=False)
    app.add_route(PAGE, page, methods=["GET"], include_in_schema=False)
    for name, kind in _FILES.items():
        app.add_route(f"{PAGE}/{name}", _file(name, kind), methods=["GET"], include_in_schema=False)


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def _complete(operation: dict[str, Any]) -> None:
    """Add the headers that any answer can have. Remove the JSON that FastAPI adds to every answer
    even if the route declares another type."""
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        if len(content) > 1 and content.get("application/json") == {"schema": {}}:
            del content["application/json"]
        names = [*_ALWAYS, *_OF_STATUS.get(status, ())]
        if "requestBody" in operation:
            names += _OF_BODIES
        if _EVENTS in content:
            names += _OF_EVENTS
        response["headers"] = {**response.get("headers", {}), **headers(*names)}


def _file(name: str, kind: str) -> Any:
    def serve(request: Request) -> Response:
        content = (files("fastapi_offline") / "static" / name).read_bytes()
        # The page's files change only with the installed version.
        return Response(content, media_type=kind, headers={"Cache-Control": "max-age=3600"})

    return serve


def _drop_fastapi_s_refusals(document: dict[str, Any]) -> None:
    """Remove FastAPI's own 422 from routes with a parameter. No answer here has that shape, and a
    path takes any string."""
    for operation in _operations(document):
        refusal = operation["responses"].get("422")
        if refusal is not None and "HTTPValidationError" in str(refusal):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
