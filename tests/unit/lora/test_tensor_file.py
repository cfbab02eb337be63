"""A safetensors file's header: every lie in it is told before a byte is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import WEIGHTS_FILE
from support.spoilt import problems


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"\0\0\0", "not a safetensors file"),
    "longer than the file": (raw({}, length=1 << 40), "announce a header of"),
    "all ones": (b"\xff" * 64, "announce a header of"),
    "pickle": (b"\x80\x04\x95" + bytes(100), "not a safetensors file"),
    "html": (b"<!DOCTYPE html><html>Not found</html>", "not a safetensors file"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
    "huge header": (raw(b" " * (17 << 20)), "at most"),
    "not json": (raw(b"{{{"), "cannot be read"),
    "not utf-8": (raw(b"\xff\xfe"), "cannot be read"),
    "deep": (raw(b"[" * 100_000), "nested too deeply"),
    "a list": (raw([]), "not a JSON object"),
    "twice": (raw(b'{"a":{},"a":{}}'), "twice"),
    "metadata": (raw({"__metadata__": 3}), "__metadata__"),
    "entry is a number": (raw({"a": 3}), "must have dtype"),
    "no dtype": (raw({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "must have dtype"),
    "more fields": (raw({"a": {**entry(0, 4), "x": 1}}, bytes(4)), "must have dtype"),
    "unknown dtype": (raw({"a": entry(0, 4, dtype="F4")}, bytes(4)), "unknown dtype"),
    "dtype is a list": (raw({"a": entry(0, 4, dtype=["F32"])}, bytes(4)), "unknown dtype"),
    "negative shape": (raw({"a": entry(0, 4, shape=[-1, -1])}, bytes(4)), "is not a shape"),
    "float shape": (raw({"a": entry(0, 4, shape=[1.0])}, bytes(4)), "is not a shape"),
    "endless shape": (raw({"a": entry(0, 4, shape=[1] * 99)}, bytes(4)), "is not a shape"),
    "huge shape": (raw({"a": entry(0, 4, shape=[1 << 47] * 8)}, bytes(4)), "does not take 4 bytes"),
    "shape too small": (raw({"a": entry(0, 8, shape=[1])}, bytes(8)), "does not take 8 bytes"),
    "backwards": (raw({"a": entry(8, 4, [1])}, bytes(8)), "are not data offsets"),
    "negative": (raw({"a": entry(-4, 0, [1])}, bytes(8)), "are not data offsets"),
    "huge offset": (raw({"a": entry(1 << 62, (1 << 62) + 4)}, bytes(8)), "are not data offsets"),
    "past the end": (raw({"a": entry(0, 400)}, bytes(4)), "its data ends at byte"),
    "truncated": (raw({"a": entry(0, 40)}, bytes(39)), "its data ends at byte"),
    "overlap": (raw({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlaps"),
    "twice the same": (raw({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlaps"),
    "gap": (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "leaves a gap"),
    "gap at the start": (raw({"a": entry(4, 8)}, bytes(8)), "leaves a gap"),
    "appended": (raw({"a": entry(0, 4)}, bytes(9)), "something was appended"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(lie: str, adapter: Path, llama: BaseLayout) -> None:
    data, said = LIES[lie]
    (adapter / WEIGHTS_FILE).write_bytes(data)
    (problem,) = problems(adapter, llama)
    assert said in problem
    assert len(problem) < 400
