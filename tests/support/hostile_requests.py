"""Forms and bodies that are to keep a server busy with reading them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

_MIB = 1 << 20
_FORM = "multipart/form-data; boundary=x"
_JSON = "application/json"


@dataclass(frozen=True)
class HostileRequest:
    path: str
    content_type: str
    make: Callable[[], bytes]
    status: int
    headers: dict[str, str] = field(default_factory=dict)


def hostile_forms() -> dict[str, HostileRequest]:
    """By what they are; all of them go to `/adapters`."""
    file = b'--x\r\ncontent-disposition: form-data; name="%d"; filename="f"\r\n\r\n\r\n'
    text = b'--x\r\ncontent-disposition: form-data; name="same"\r\n\r\n\r\n'
    start = b"--x\r\ncontent-disposition: form-data; name=file; filename=a.zip\r\n"
    end = b"\r\n--x--\r\n"

    def form(make: Callable[[], bytes], status: int, kind: str = _FORM) -> HostileRequest:
        return HostileRequest("/adapters", kind, make, status)

    return {
        "a form of 100,000 files": form(
            lambda: b"".join(file % number for number in range(100_000)) + end, 400
        ),
        "a form of 100,000 fields of one name": form(lambda: text * 100_000 + end, 400),
        "a part of 200,000 headers": form(
            lambda: b"--x\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(200_000)) + end, 400
        ),
        "a header of 8 MB": form(lambda: b"--x\r\na: " + b"b" * (8 * _MIB) + b"\r\n" + end, 400),
        "a header's name of 8 MB": form(lambda: b"--x\r\n" + b"b" * (8 * _MIB), 400),
        "8 MB before the first part": form(lambda: b"\r\n" * (4 * _MIB), 400),
        "8 MB after the last part": form(lambda: start + b"\r\nabc" + end + b"a" * (8 * _MIB), 422),
        "4 million beginnings of a boundary": form(
            lambda: start + b"\r\n" + b"\r\n--" * (4 * _MIB) + end, 422
        ),
        "no boundary": form(lambda: b"a" * (8 * _MIB), 400, "multipart/form-data"),
        "a boundary of 60,000 characters": form(
            lambda: b"a" * _MIB, 400, f"multipart/form-data; boundary={'x' * 60_000}"
        ),
        "a gzip of a form": HostileRequest(
            "/adapters",
            _FORM,
            lambda: gzip.compress(start + b"\r\nabc" + end),
            415,
            {"content-encoding": "gzip"},
        ),
    }


def hostile_bodies() -> dict[str, HostileRequest]:
    """By what they are: JSON of nearly the largest size that is read."""
    lists = b"[" + b"[]," * 2_500_000 + b"[]]"
    zeros = b"[" + b"0," * (4 * _MIB - 99) + b"0]"
    objects = b"[" + b"{}," * 2_500_000 + b"{}]"

    def unknown() -> bytes:
        return b"{" + b",".join(b'"k%d":0' % number for number in range(600_000)) + b"}"

    def body(
        path: str, status: int, head: bytes, rest: bytes | Callable[[], bytes], tail: bytes = b""
    ) -> HostileRequest:
        def made() -> bytes:
            return head + (rest if isinstance(rest, bytes) else rest()) + tail

        return HostileRequest(path, _JSON, made, status)

    parameters = b'{"inputs":"x","parameters":'
    return {
        "8 million brackets": body("/generate", 413, b"", b"[" * (8 * _MIB - 10)),
        "a number of 8 million digits": body(
            "/generate", 400, b'{"inputs":', b"9" * (8 * _MIB - 99), b"}"
        ),
        "2.5 million lists": body("/generate", 413, b"", lists),
        "2.5 million lists as inputs": body("/generate", 413, b'{"inputs":', lists, b"}"),
        "2.5 million adapters": body("/generate", 413, b'{"inputs":"x","adapter":', lists, b"}"),
        "600,000 unknown fields": body("/generate", 413, b"", unknown),
        "600,000 unknown parameters": body("/generate", 413, parameters, unknown, b"}"),
        "4 million stop sequences": body("/generate", 413, parameters + b'{"stop":', zeros, b"}}"),
        "4 million messages": body("/v1/chat/completions", 413, b'{"messages":', zeros, b"}"),
        "2.5 million empty messages": body(
            "/v1/chat/completions", 413, b'{"messages":', objects, b"}"
        ),
        "2.5 million prompts": body("/v1/completions", 413, b'{"prompt":', lists, b"}"),
        "600,000 biases": body(
            "/v1/completions", 413, b'{"prompt":"x","logit_bias":', unknown, b"}"
        ),
        "2.5 million inputs": body("/v1/embeddings", 413, b'{"input":', objects, b"}"),
        "a gzip of a body": HostileRequest(
            "/generate",
            _JSON,
            partial(gzip.compress, b'{"inputs":"x"}'),
            415,
            {"content-encoding": "gzip"},
        ),
    }
