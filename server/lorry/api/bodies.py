"""JSON bodies: read with a limit, parsed strictly, refused with every wrong field named."""

from __future__ import annotations

import json
import re
from typing import Any, Never, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from lorry.api.errors import BodyTooLarge, InvalidFields, MalformedBody, UnsupportedMediaType

MAX_JSON = 8 << 20
"""Bytes of a JSON body."""

_LINGER = 16 << 20
"""Bytes of a refused body that are read and dropped, so that a client that sends first and
reads later gets to see the answer."""


class Body(BaseModel):
    """A request's body. No number is made from a string, no field is ignored."""

    model_config = ConfigDict(strict=True, extra="forbid")


Kind = TypeVar("Kind", bound=Body)


async def read_body(request: Request, kind: type[Kind]) -> Kind:
    """The request's JSON as `kind`.

    Raises:
        UnsupportedMediaType, BodyTooLarge, MalformedBody, InvalidFields.
        ClientDisconnect: the client went away in the middle.
    """
    data = await read_json(request)
    if not isinstance(data, dict):
        raise InvalidFields([f"the body must be a JSON object, not {_describe(data)}"])
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        _refuse(error)


async def read_json(request: Request) -> Any:
    sent = media_type(request)
    if sent != "application/json" and not (
        sent.startswith("application/") and sent.endswith("+json")
    ):
        raise UnsupportedMediaType(
            f"send JSON with Content-Type: application/json, not {sent or 'without one'}"
        )
    return parse_json(await _read(request))


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_json(data: bytes) -> Any:
    """Strict JSON: neither NaN nor Infinity, no half of a surrogate pair. MalformedBody."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        if b"\\u" in data:
            # A lone surrogate is no text: tokenizers and encoders choke on it later.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MalformedBody("the body has an unpaired surrogate (\\ud800 to \\udfff)") from error
    except RecursionError as error:
        raise MalformedBody("the body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: {error.reason}") from error
    except ValueError as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error
    return value


async def drop_rest(request: Request) -> None:
    """Read and forget what still comes, up to a limit."""
    if request._stream_consumed:
        # The refused chunk was the last; Starlette's `stream` would raise.
        return
    dropped = 0
    async for chunk in request.stream():
        dropped += len(chunk)
        if dropped > _LINGER:
            return


async def drop_unread(request: Request) -> None:
    """The body is not wanted: let a client that only sends now read the answer afterwards."""
    if not waits_for_consent(request):
        await drop_rest(request)


def announced_length(request: Request) -> int | None:
    """Content-Length, where it is a number."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


def waits_for_consent(request: Request) -> bool:
    """The client sends nothing before we start to read (`Expect: 100-continue`)."""
    return request.headers.get("expect", "").strip().lower() == "100-continue"


async def _read(request: Request) -> bytes:
    length = announced_length(request)
    refusal = BodyTooLarge(
        f"the body is larger than {MAX_JSON} bytes, the most a JSON body may have"
    )
    if length is not None and length > MAX_JSON:
        await drop_unread(request)
        raise refusal
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_JSON:
            await drop_rest(request)
            raise refusal
    return bytes(data)


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _refuse(error: ValidationError) -> Never:
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        kind = item["type"]
        if kind == "missing":
            problems.append(f"{field} is required")
        elif kind == "extra_forbidden":
            problems.append(f"unknown field {field}")
        else:
            message = re.sub("^(Input|String|List|Dictionary) should", "must", item["msg"])
            message = message.replace("a valid ", "a ")
            problems.append(f"{field} {message}, not {_describe(item['input'])}")
    first = error.errors(include_url=False)[0]["loc"]
    raise InvalidFields(problems, param=".".join(str(part) for part in first)) from error


def _describe(value: object) -> str:
    """A value as the client wrote it, not too much of it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of that size"
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
