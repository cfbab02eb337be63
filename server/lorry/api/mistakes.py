"""Describes the errors in a JSON body in messages of bounded length.

A body of some megabytes can contain hundreds of thousands of errors. Listing them all would take
seconds and gigabytes, on the thread of all requests, and nobody would read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from lorry.api.errors import BodyTooLarge, InvalidFields
from lorry_adapters.lora.problems import MAX_PROBLEMS

MAX_NUMBERS: Final = 2 << 20
"""Commas in a JSON body: items of its lists, mostly token ids."""

MAX_PARTS: Final = 1 << 18
"""Lists, objects and keys together; and also strings."""

_MANY: Final = 1000
"""From this many errors on they are only counted: pydantic returns all of them or none."""

_LONG: Final = 80
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|$)', re.DOTALL)
"""A JSON string, or the start of one without an end, so that no search starts again inside it."""


def check_size(data: bytes) -> None:
    """Raise BodyTooLarge, before parsing, for JSON with more values than any real request."""
    # A lower bound of the quotes outside strings: those inside have a backslash before them.
    quotes = data.count(b'"') - data.count(b'\\"')
    if quotes > 2 * MAX_PARTS or (_is_large(data) and _is_large(_STRING.sub(b"", data))):
        raise BodyTooLarge(
            f"the body contains more than {MAX_PARTS} strings, or lists, objects and keys, or more "
            f"than {MAX_NUMBERS} items"
        )


def _is_large(data: bytes) -> bool:
    parts = data.count(b"[") + data.count(b"{") + data.count(b":")
    return parts > MAX_PARTS or data.count(b",") > MAX_NUMBERS


def mistakes(error: ValidationError, refused: Mapping[str, str] = {}) -> InvalidFields:
    """List the wrong fields, up to a readable number. `refused` are messages, by path, about fields
    that pydantic did not see."""
    count = error.error_count() + len(refused)
    if count > _MANY:
        return too_many(count)
    every = error.errors(include_url=False)
    problems = [*(_told(item) for item in every), *refused.values()]
    return _listed(problems, _path(every[0]["loc"]))


def strays(refused: Mapping[str, str]) -> InvalidFields:
    """Return the error for refused fields, by path, if nothing else is wrong."""
    return _listed([*refused.values()], next(iter(refused)))


def too_many(count: int) -> InvalidFields:
    return InvalidFields([f"the body has {count} wrong or unknown fields, too many to list"])


def _listed(problems: list[str], param: str) -> InvalidFields:
    more = len(problems) - MAX_PROBLEMS
    shown = [*problems[:MAX_PROBLEMS], *([f"and {more} more problems"] if more > 0 else [])]
    return InvalidFields(shown, param=param)


def _told(item: Any) -> str:
    field, kind = _path(item["loc"]), item["type"]
    if kind == "missing":
        return f"{field} is required"
    if kind == "extra_forbidden":
        return f"unknown field {field}"
    if kind == "none_required":
        return f"{field} is not served here; leave it out"
    message = re.sub("^(Input|String|List|Dictionary) should", "must", item["msg"])
    message = re.sub("a valid (?=[aeiou])", "an ", message).replace("a valid ", "a ")
    return f"{field} {message}, not {described(item['input'])}"


def _path(loc: Sequence[int | str]) -> str:
    return ".".join(str(part)[:200] for part in loc)


def described(value: object) -> str:
    """Return a value as the client wrote it, shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of that size"
    if isinstance(value, str):
        value = value[: _LONG + 1]
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value):
        text += piece[: _LONG + 1]
        if len(text) > _LONG:
            return text[: _LONG - 3] + "..."
    return text
