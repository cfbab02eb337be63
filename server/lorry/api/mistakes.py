"""What is wrong with a JSON body, in words whose length does not depend on what was sent.

A body of some megabytes can hold hundreds of thousands of mistakes. Listing them all costs
seconds and gigabytes, on the thread that everybody waits for, and nobody reads them.
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
"""Commas of a JSON body: items of its lists, mostly token ids."""

MAX_PARTS: Final = 1 << 18
"""Its lists, objects and keys together; and its strings."""

_MANY: Final = 1000
"""Mistakes from which on they are only counted: pydantic tells all of them or none."""

_LONG: Final = 80
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|$)', re.DOTALL)
"""A JSON string, or what begins as one and does not end: no search starts again inside it."""


def check_size(data: bytes) -> None:
    """BodyTooLarge for JSON of more values than any request has, before they are made."""
    # At least so many quotes are none of a string's own, which have a backslash in front.
    quotes = data.count(b'"') - data.count(b'\\"')
    if quotes > 2 * MAX_PARTS or (_is_large(data) and _is_large(_STRING.sub(b"", data))):
        raise BodyTooLarge(
            f"the body holds more than {MAX_PARTS} texts, or lists, objects and keys, or more "
            f"than {MAX_NUMBERS} items"
        )


def _is_large(data: bytes) -> bool:
    parts = data.count(b"[") + data.count(b"{") + data.count(b":")
    return parts > MAX_PARTS or data.count(b",") > MAX_NUMBERS


def mistakes(error: ValidationError, refused: Mapping[str, str] = {}) -> InvalidFields:
    """Every wrong field, up to a number that someone would read. `refused`: what is said of
    fields that pydantic did not see, by their places."""
    count = error.error_count() + len(refused)
    if count > _MANY:
        return too_many(count)
    every = error.errors(include_url=False)
    problems = [*(_told(item) for item in every), *refused.values()]
    return _listed(problems, _path(every[0]["loc"]))


def strays(refused: Mapping[str, str]) -> InvalidFields:
    """What is said of fields, by their places, where nothing else is wrong."""
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
    message = message.replace("a valid ", "a ")
    return f"{field} {message}, not {described(item['input'])}"


def _path(loc: Sequence[int | str]) -> str:
    return ".".join(str(part)[:200] for part in loc)


def described(value: object) -> str:
    """A value as the client wrote it, not too much of it."""
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
