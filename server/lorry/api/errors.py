"""Errors as HTTP: one table from a class to its status, code and type, and three body shapes.

The routes of TGI's and LoRAX's clients answer in TGI's shape, Anthropic's in Anthropic's, and all
others in OpenAI's. OpenAI's and Anthropic's routes say 400 where others say 422, because their
clients know no other class for a bad request. A message never contains a traceback: unforeseen
errors are logged, and the client learns only that the server failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, RedirectResponse, Response

import lorry.errors as served
import lorry_adapters.errors as adapters
from lorry import advice
from lorry.api import anthropic_errors
from lorry.api.journal import refused
from lorry.api.methods import methods_of
from lorry.api.prefix import prefix_of
from lorry.api.request_id import HEADER as REQUEST_ID
from lorry.api.request_id import request_id_of
from lorry.api.signpost import nearest, routes_of
from lorry.errors import InvalidRequest, LorryError
from lorry.metrics import Metrics

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's status for a client that is gone; it appears in logs only."""

UNREADY_RETRY = 5
"""Seconds until another server, or this one again, may take requests."""


class HttpError(LorryError):
    """A request that is wrong at the level of HTTP; `param` names a header or a field."""

    param: str | None = None


class MalformedBody(HttpError):
    pass


class UnsupportedMediaType(HttpError):
    param = "Content-Type"


class BodyTooLarge(HttpError):
    pass


class BodyTooSlow(HttpError):
    pass


class Unauthorized(HttpError):
    param = "Authorization"


class MalformedHost(HttpError):
    param = "Host"


class ForeignHost(HttpError):
    param = "Host"


class CrossSite(HttpError):
    param = "Origin"


class NoSuchRoute(HttpError):
    """`routes` are the existing ones."""

    def __init__(self, message: str, routes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.routes = tuple(routes)


class WrongMethod(HttpError):
    pass


class ResponseNotFound(HttpError):
    param = "response_id"


class PreviousNotFound(HttpError):
    param = "previous_response_id"


class InvalidFields(InvalidRequest):
    """A body or a form with wrong fields: it lists all of them, not only the first."""

    def __init__(self, problems: Sequence[str], *, param: str | None = None) -> None:
        self.problems = tuple(problems)
        assert self.problems
        super().__init__("; ".join(self.problems), param=param)


@dataclass(frozen=True, slots=True)
class ErrorRow:
    status: int
    code: str
    """Our stable code for programs."""
    type: str
    """OpenAI's `type`."""
    tgi: str
    """TGI's `error_type`."""


_REQUEST = "invalid_request_error"
_SERVER = "server_error"

TABLE: Mapping[type[Exception], ErrorRow] = {
    MalformedBody: ErrorRow(400, "malformed_body", _REQUEST, "validation"),
    MalformedHost: ErrorRow(400, "malformed_host", _REQUEST, "validation"),
    served.HeaderMismatch: ErrorRow(400, "adapter_header_mismatch", _REQUEST, "validation"),
    PreviousNotFound: ErrorRow(400, "previous_response_not_found", _REQUEST, "validation"),
    Unauthorized: ErrorRow(401, "unauthorized", "authentication_error", "unauthorized"),
    ForeignHost: ErrorRow(403, "foreign_host", "permission_error", "forbidden"),
    served.ScopeMissing: ErrorRow(403, "scope_missing", "permission_error", "forbidden"),
    served.ForbiddenAdapter: ErrorRow(403, "forbidden_adapter", "permission_error", "forbidden"),
    served.KeyLimitExceeded: ErrorRow(403, "key_limit_exceeded", "permission_error", "forbidden"),
    CrossSite: ErrorRow(403, "cross_site_request", "permission_error", "forbidden"),
    adapters.ForbiddenSource: ErrorRow(403, "forbidden_source", "permission_error", "forbidden"),
    NoSuchRoute: ErrorRow(404, "no_such_route", "not_found_error", "not_found"),
    ResponseNotFound: ErrorRow(404, "response_not_found", "not_found_error", "not_found"),
    served.ModelNotFound: ErrorRow(404, "model_not_found", "not_found_error", "not_found"),
    adapters.UnknownAdapter: ErrorRow(404, "unknown_adapter", "not_found_error", "not_found"),
    served.KeyNotFound: ErrorRow(404, "unknown_key", "not_found_error", "not_found"),
    WrongMethod: ErrorRow(405, "method_not_allowed", _REQUEST, "validation"),
    BodyTooSlow: ErrorRow(408, "body_too_slow", _REQUEST, "validation"),
    adapters.AdapterDisabled: ErrorRow(
        409, "adapter_disabled", "conflict_error", "adapter_disabled"
    ),
    adapters.AdapterConflict: ErrorRow(409, "adapter_conflict", "conflict_error", "conflict"),
    served.KeyConflict: ErrorRow(409, "key_conflict", "conflict_error", "conflict"),
    adapters.DigestMismatch: ErrorRow(412, "digest_mismatch", "precondition_error", "conflict"),
    BodyTooLarge: ErrorRow(413, "body_too_large", _REQUEST, "validation"),
    adapters.UploadTooLarge: ErrorRow(413, "upload_too_large", _REQUEST, "validation"),
    UnsupportedMediaType: ErrorRow(415, "unsupported_media_type", _REQUEST, "validation"),
    adapters.UnsupportedUpload: ErrorRow(415, "unsupported_upload", _REQUEST, "validation"),
    InvalidRequest: ErrorRow(422, "invalid_request", _REQUEST, "validation"),
    served.UnsupportedParameter: ErrorRow(422, "unsupported_parameter", _REQUEST, "validation"),
    served.PromptTooLong: ErrorRow(422, "context_length_exceeded", _REQUEST, "validation"),
    served.InvocationMissing: ErrorRow(422, "invocation_missing", _REQUEST, "validation"),
    served.DoesNotFit: ErrorRow(422, "does_not_fit", _REQUEST, "validation"),
    adapters.InvalidAdapter: ErrorRow(422, "invalid_adapter", _REQUEST, "validation"),
    adapters.InvalidAdapterName: ErrorRow(422, "invalid_adapter_name", _REQUEST, "validation"),
    adapters.InvalidScale: ErrorRow(422, "invalid_scale", _REQUEST, "validation"),
    adapters.InvalidSelection: ErrorRow(422, "invalid_selection", _REQUEST, "validation"),
    adapters.AdapterBroken: ErrorRow(422, "adapter_broken", _REQUEST, "adapter_broken"),
    served.RateLimited: ErrorRow(429, "rate_limited", "rate_limit_error", "overloaded"),
    served.QueueFull: ErrorRow(429, "queue_full", "rate_limit_error", "overloaded"),
    served.GenerationFailed: ErrorRow(500, "generation_failed", _SERVER, "generation"),
    served.SourceFailed: ErrorRow(502, "source_failed", _SERVER, "source_failed"),
    served.ShuttingDown: ErrorRow(503, "shutting_down", _SERVER, "overloaded"),
    adapters.CatalogUnavailable: ErrorRow(503, "catalog_unavailable", _SERVER, "overloaded"),
    adapters.StoreUnavailable: ErrorRow(503, "store_unavailable", _SERVER, "overloaded"),
    adapters.HomeUnusable: ErrorRow(503, "home_unusable", _SERVER, "overloaded"),
    adapters.StorageFull: ErrorRow(507, "storage_full", _SERVER, "overloaded"),
    adapters.OutOfMemory: ErrorRow(507, "out_of_memory", _SERVER, "overloaded"),
    Exception: ErrorRow(500, "internal_error", _SERVER, "generation"),
}

_UNFORESEEN = "the server failed at this request; its log has the details"

TGI_ROUTES = frozenset({"/", "/generate", "/generate_stream", "/tokenize", "/embed"})
"""Paths whose errors have TGI's shape."""

OPENAI_ROUTES = ("/v1/", "/detokenize", "/score", "/rerank")
"""Starts of the paths whose clients expect OpenAI's statuses."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None
    problems: list[str] | None = None
    """All problems, if several fields or files can be wrong."""
    routes: list[str] | None = None
    """All routes, if none has this path."""


class ErrorBody(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class TgiErrorBody(BaseModel):
    """An error in the shape of text-generation-inference."""

    error: str
    error_type: str


def row_of(error: Exception) -> ErrorRow:
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    raise AssertionError("Exception is in the table")


def message_of(error: Exception) -> str:
    if row_of(error) is TABLE[Exception]:
        return _UNFORESEEN
    return advice.message_of(error)


def tgi_body(error: Exception) -> dict[str, Any]:
    return {"error": message_of(error), "error_type": row_of(error).tgi}


def openai_body(error: Exception) -> dict[str, Any]:
    row = row_of(error)
    detail: dict[str, Any] = {
        "message": message_of(error),
        "type": row.type,
        "param": getattr(error, "param", None),
        "code": row.code,
    }
    if row.status == 422:
        problems = getattr(error, "problems", (detail["message"],))
        detail["problems"] = [advice.advised(problem) for problem in problems]
    return {"error": {**detail, **_routes(error)}}


def anthropic_body(error: Exception) -> dict[str, Any]:
    detail = {
        "type": anthropic_errors.type_of(status_of(anthropic_errors.ROUTES, error)),
        "message": message_of(error),
        "param": getattr(error, "param", None),
        "code": row_of(error).code,
    }
    return {"type": "error", "error": {**detail, **_routes(error)}}


def _routes(error: Exception) -> dict[str, list[str]]:
    return {"routes": list(error.routes)} if isinstance(error, NoSuchRoute) else {}


def body_of(path: str, error: Exception) -> dict[str, Any]:
    if path.startswith(anthropic_errors.ROUTES):
        return anthropic_body(error)
    return tgi_body(error) if path in TGI_ROUTES else openai_body(error)


def status_of(path: str, error: Exception) -> int:
    status = row_of(error).status
    if path.startswith(anthropic_errors.ROUTES):
        return anthropic_errors.STATUSES.get(status, status)
    return 400 if status == 422 and path.startswith(OPENAI_ROUTES) else status


def count(error: Exception, metrics: Metrics) -> None:
    """Record in the metrics and in the request's log line that it was answered with this error."""
    code = row_of(error).code
    metrics.refused(code)
    refused(code, message_of(error))


def headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, served.QueueFull | served.RateLimited):
        return {"Retry-After": str(max(1, error.retry_after))}
    if row_of(error).status == 503:
        return {"Retry-After": str(UNREADY_RETRY)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def respond(path: str, error: Exception) -> Response:
    return JSONResponse(
        body_of(path, error), status_code=status_of(path, error), headers=headers_of(error)
    )


def documented(
    *statuses: int,
    tgi: bool = False,
    anthropic: bool = False,
    keyless: bool = False,
    model: type[BaseModel] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that can fail with `statuses`. Any route can fail with 400,
    401, 403, 429 and 500, except 401 and 429 without a key (`keyless`). 408 is added wherever a
    body can be too large. `model` is a shape of the route's own.

    OpenAI's routes have no 422 (`status_of`)."""
    shape: type[BaseModel] = ErrorBody
    if tgi:
        shape = TgiErrorBody
    elif anthropic:
        shape = anthropic_errors.AnthropicErrorBody
    meanings = {
        400: "The body is not JSON or does not match its header, or Host is malformed; if 422 is "
        "not listed, also a field with a wrong value: the message names it",
        401: "No key, or a wrong one",
        403: "Not allowed",
        404: "No such adapter, version, model, key or stored response",
        408: "The body arrived too slowly",
        409: "The adapter is disabled, or exists with other content; or the key exists",
        412: "The adapter was changed since",
        413: "The body is too large",
        415: "A content type or a kind of file that is not accepted here",
        422: "A field with a wrong value; the message names it",
        429: "The queue is full, or a limit of the key is reached; `Retry-After` says when to try "
        "again",
        500: "The server failed",
        502: "The source of the adapter cannot be read",
        503: "Not ready, shutting down, or nothing can be stored",
        507: "No room to store it, or no memory to check it",
        529: "Not ready, or shutting down",
    }
    can = {*statuses, 400, 403, 500}
    can |= {408} if 413 in can else set()
    can |= set() if keyless else {401, 429}
    return {
        status: {"model": model or shape, "description": meanings[status]} for status in sorted(can)
    }


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every exception of `app` from the table."""

    async def known(request: Request, error: Exception) -> Response:
        count(error, metrics)
        return respond(request.url.path, error)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, method = request.url.path, request.method
        translated: HttpError
        if error.status_code == 404 and path[-1:] == "/" and methods_of(app, path.rstrip("/")):
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(prefix_of(request.scope) + path.rstrip("/") + query)
        if error.status_code == 404:
            # In a thread: generating the document takes a while the first time.
            routes = routes_of(await asyncio.to_thread(app.openapi))
            meant = nearest(routes, method, path)
            hint = f"did you mean {meant}? " if meant else ""
            translated = NoSuchRoute(
                f"there is no {method} {path[:200]} here; {hint}see `routes`, or /docs", routes
            )
        elif error.status_code == 405:
            allowed = ", ".join(methods_of(app, path))
            error.headers = {"Allow": allowed}
            translated = WrongMethod(f"{path[:200]} does not take {method}, only {allowed}")
        else:
            translated = MalformedBody(str(error.detail))
        response = await known(request, translated)
        response.headers.update(error.headers or {})
        return response

    async def of_parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = [
            f"{item['loc'][-1]}: {item['msg'][:1].lower()}{item['msg'][1:]}"
            for item in error.errors()
        ]
        param = str(error.errors()[0]["loc"][-1])
        return await known(request, InvalidFields(problems, param=param))

    async def of_leaving(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(LorryError, known)
    app.add_exception_handler(adapters.AdapterError, known)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_parameters)
    app.add_exception_handler(ClientDisconnect, of_leaving)

    async def unforeseen(request: Request, error: Exception) -> Response:
        # Starlette answers it outside all our middleware.
        response = await known(request, error)
        # The web server closes the connection after logging the error. Without this header, a
        # client would send its next request on the connection and find it reset.
        response.headers["Connection"] = "close"
        name = request_id_of(request.scope)
        if name is not None:
            response.headers[REQUEST_ID] = name
        return response

    # Starlette raises it again after the answer, so that the web server logs it.
    app.add_exception_handler(Exception, unforeseen)
