"""JSON bodies: read with a limit, parsed strictly, refused with every wrong field named.

`lorry.api.fields` defines the accepted values of fields that no schema has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Never, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from lorry.api.adapter_header import HEADER as ADAPTER_HEADER
from lorry.api.adapter_header import check_header
from lorry.api.arrival import arriving, check_encoding
from lorry.api.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidFields,
    MalformedBody,
    UnsupportedMediaType,
)
from lorry.api.fields import Strays
from lorry.api.mistakes import check_size, described, mistakes, strays
from lorry.api.remarks import Remarks, remarks_of
from lorry.api.sifting import sift
from lorry.api.visit import arrived

MAX_JSON = 8 << 20
"""Bytes of a JSON body."""

_LONG = 1 << 18
"""Bytes of JSON from which on parsing would block the event loop for too long."""

_LINGER = 16 << 20
"""Bytes of a refused body that are read and dropped, so that a client that sends everything
before it reads sees the answer."""


class Body(BaseModel):
    """A request's body. Strings are not converted to numbers, and no field is ignored silently."""

    model_config = ConfigDict(strict=True, extra="forbid")

    strays: ClassVar[Strays] = Strays.REFUSED
    """The treatment of unknown fields (`lorry.api.sifting`)."""


Kind = TypeVar("Kind", bound=Body)

RESOLVING = "resolving"
"""The application's `Resolving` in its state, if unknown adapters are fetched."""


async def read_body(request: Request, kind: type[Kind]) -> Kind:
    """Return the request's JSON as `kind`.

    Raises:
        UnsupportedMediaType, BodyTooLarge, BodyTooSlow, MalformedBody, InvalidFields.
        HeaderMismatch: `X-Lorry-Adapter` names another adapter than the body.
        ClientDisconnect: the client went away in the middle.
        QueueFull, ShuttingDown: before the body is parsed.
    """
    return await read_one_of(request, lambda data: kind)


async def read_one_of(request: Request, choose: Callable[[dict[str, Any]], type[Kind]]) -> Kind:
    """Like `read_body`, with a kind that depends on the given fields."""
    check_media_type(request)
    data = await _read(request)
    await arrived(request)
    remarks = remarks_of(request)
    if len(data) > _LONG:
        body = await asyncio.to_thread(_make, data, choose, remarks)
    else:
        body = _make(data, choose, remarks)
    check_header(request.headers.getlist(ADAPTER_HEADER), body)
    resolving = getattr(request.app.state, RESOLVING, None)
    if resolving is not None:
        await resolving.prepare(body)
    return body


def _make(content: bytes, choose: Callable[[dict[str, Any]], type[Kind]], remarks: Remarks) -> Kind:
    data = parse_json(content)
    if not isinstance(data, dict):
        raise InvalidFields([f"the body must be a JSON object, not {described(data)}"])
    kind = choose(data)
    refused: Mapping[str, str] = {}
    if not remarks.strict:
        sifted = sift(kind, data)
        data, refused = sifted.kept, sifted.refused
        remarks.ignore(sifted.ignored)
    try:
        body = kind.model_validate(data)
    except ValidationError as error:
        raise mistakes(error, refused) from None
    if refused:
        raise strays(refused)
    return body


def check_media_type(request: Request) -> None:
    """Raise UnsupportedMediaType unless the body is JSON."""
    sent = media_type(request)
    if sent != "application/json" and not (
        sent.startswith("application/") and sent.endswith("+json")
    ):
        raise UnsupportedMediaType(
            f"send JSON with Content-Type: application/json, not {sent or 'without one'}"
        )


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_json(data: bytes) -> Any:
    """Parse strict JSON: neither NaN nor Infinity nor half of a surrogate pair, and no key twice.

    Raises MalformedBody, BodyTooLarge.
    """
    check_size(data)
    try:
        value = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_without_twins)
        if b"\\u" in data:
            # A lone surrogate is not text: tokenizers and encoders would fail on it later.
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
    """Read and drop the rest of the body, up to a limit."""
    if request._stream_consumed:
        # The refused chunk was the last; Starlette's `stream` would raise.
        return
    dropped = 0
    with suppress(BodyTooSlow):
        async for chunk in arriving(request):
            dropped += len(chunk)
            if dropped > _LINGER:
                return


async def drop_unread(request: Request) -> None:
    """Drop a body that is not wanted, so that a client that only sends now reads the answer after
    it."""
    if not waits_for_consent(request):
        await drop_rest(request)


def announced_length(request: Request) -> int | None:
    """Return Content-Length if it is a number."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


def waits_for_consent(request: Request) -> bool:
    """Return whether the client waits for us before it sends (`Expect: 100-continue`)."""
    return request.headers.get("expect", "").strip().lower() == "100-continue"


async def _read(request: Request) -> bytes:
    check_encoding(request)
    length = announced_length(request)
    refusal = BodyTooLarge(f"the body is larger than {MAX_JSON} bytes, the limit for JSON")
    if length is not None and length > MAX_JSON:
        await drop_unread(request)
        raise refusal
    data = bytearray()
    async for chunk in arriving(request):
        data += chunk
        if len(data) > MAX_JSON:
            await drop_rest(request)
            raise refusal
    return bytes(data)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            # Parsers keep the first or the last, and a proxy before us may have read the other.
            shown = json.dumps(key[:80])
            raise MalformedBody(f"the body has the key {shown} twice in one object; send it once")
        seen.add(key)
    raise AssertionError


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not a JSON number")
