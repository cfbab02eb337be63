"""Reads untrusted safetensors files: first the header, then tensors into memory of their own.

Format: 8 bytes, the header's length N, little-endian; N bytes of JSON, name -> {"dtype",
"shape", "data_offsets": [begin, end)} counted from the header's end; then the data, which
the tensors cover without gap or overlap (https://huggingface.co/docs/safetensors).

Files are not mapped: a tensor that aliased a file would change with it or crash the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.problems import refusal, shown

MAX_HEADER: Final = 16 << 20
"""Bytes. The format itself allows 100 MB."""

MAX_TENSORS: Final = 100_000
"""Enough for the largest mixtures of experts, with a pair for each expert."""

MAX_NAME: Final = 1024
"""Characters of a tensor's name."""

_BESIDE: Final = 50_000
_MARKS: Final = {
    b"{": MAX_TENSORS + _BESIDE,
    b"[": 2 * MAX_TENSORS + _BESIDE,
    b":": 4 * MAX_TENSORS + _BESIDE,
    b",": 8 * MAX_TENSORS + _BESIDE,
}
"""The most punctuation of a header with that many tensors, with a margin for __metadata__. A
parsed header takes many times its bytes, and parsing it is one call that holds the interpreter."""

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The dtypes of an adapter's tensors."""

PLACES: Final[Mapping[str, torch.dtype]] = {
    "I32": torch.int32,
    "I64": torch.int64,
    "F32": torch.float32,
}
"""The dtypes of indices into a weight. PEFT on Windows stores them as floats."""

_READ: Final = {**DTYPES, **PLACES}

_NOT_COMPUTED: Final = frozenset({"F64", "F8_E4M3", "F8_E5M2"})
"""Dtypes that are read as float32, like PEFT's own parameters."""

_SIZES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    dtype: str
    """The file's own spelling: `F32`, ..."""
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file."""
    bytes: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class TensorFile:
    """An open file whose header was checked against the file's size.

    Opening raises InvalidAdapter with every error in the header, and OSError as `open` does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.places: set[str] = set()
        """Names that were read by `read_places`."""
        # Unbuffered: tensors are read directly into their own memory.
        self._file = path.open("rb", buffering=0)
        try:
            self.entries: Mapping[str, TensorEntry] = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def memory(self) -> int:
        """Return the bytes that its tensors take in memory."""
        return sum(
            4 * entry.elements if entry.dtype in _NOT_COMPUTED else entry.bytes
            for entry in self.entries.values()
        )

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in memory of its own, in a dtype for computing.

        Raises InvalidAdapter if the file has become shorter since it was opened.
        """
        return self._read(self.entries[name])

    def read_places(self, name: str, end: int) -> torch.Tensor:
        """Return indices from 0 to `end` - 1, as int64.

        Raises InvalidAdapter if one is not an integer or is out of range.
        """
        self.places.add(name)
        stored = self._read(self.entries[name])
        if not stored.is_floating_point():
            stored = stored.to(torch.int64)  # `end` may not fit in 32 bits
        # NaN fails every comparison.
        if not bool(((stored >= 0) & (stored < end) & (stored == stored.floor())).all()):
            raise InvalidAdapter(
                [f"{shown(name)} contains numbers that are not indices from 0 to {end - 1}"]
            )
        return stored.to(torch.int64)

    def _read(self, entry: TensorEntry) -> torch.Tensor:
        tensor = torch.empty(entry.shape, dtype=_READ[entry.dtype])
        if entry.bytes:
            self._file.seek(entry.begin)
            self._fill(tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor.float() if entry.dtype in _NOT_COMPUTED else tensor

    def _fill(self, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            count = self._file.readinto(memory[done:])
            if not count:
                raise InvalidAdapter([f"{self._path.name} ends in the middle of a tensor"])
            done += count

    def _header(self) -> dict[str, TensorEntry]:
        name = self._path.name
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise InvalidAdapter([f"{name} has {size} bytes: not a safetensors file"])
        first = bytearray(8)
        self._fill(memoryview(first))
        length = int.from_bytes(first, "little")
        if length > size - 8:
            raise InvalidAdapter(
                [
                    f"{name} is not a safetensors file, or is truncated: its first bytes announce "
                    f"a header of {length} bytes, but the file has {size}"
                ]
            )
        if length > MAX_HEADER:
            raise InvalidAdapter(
                [f"{name}: a header of {length} bytes; at most {MAX_HEADER} are accepted"]
            )
        text = bytearray(length)
        self._fill(memoryview(text))
        return _entries(name, _parsed(name, text), 8 + length, size)


def _parsed(name: str, text: bytearray) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it contains a name twice")
        return found

    if any(text.count(mark) > most for mark, most in _MARKS.items()):
        raise InvalidAdapter([f"{name}: the header lists more than {MAX_TENSORS} tensors"])
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except RecursionError:
        raise InvalidAdapter([f"{name}: the header is nested too deeply"]) from None
    except ValueError as error:
        raise InvalidAdapter([f"{name}: the header cannot be read: {error}"]) from None
    if not isinstance(header, dict):
        raise InvalidAdapter([f"{name}: the header is not a JSON object"])
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise InvalidAdapter([f"{name}: __metadata__ in the header is not an object"])
    if len(header) > MAX_TENSORS:
        raise InvalidAdapter([f"{name}: the header lists more than {MAX_TENSORS} tensors"])
    longest = max(map(len, header), default=0)
    if longest > MAX_NAME:
        raise InvalidAdapter(
            [f"{name}: a tensor's name has {longest} characters; at most {MAX_NAME} are allowed"]
        )
    return header


def _entries(
    name: str, header: dict[str, Any], start: int, file_size: int
) -> dict[str, TensorEntry]:
    problems: list[str] = []
    entries: dict[str, TensorEntry] = {}
    for key, value in header.items():
        try:
            entries[key] = _entry(value, start, file_size)
        except _BadEntry as lie:
            problems.append(f"{shown(key)}: {lie}")
    if not problems:
        end = start
        for key, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            if entry.begin != end:
                what = "overlaps the one before it" if entry.begin < end else "leaves a gap"
                problems.append(f"{shown(key)}: its data {what}")
            end = max(end, entry.begin + entry.bytes)
        if end != file_size and not problems:
            problems.append(
                f"{name} has {file_size} bytes, but its header accounts for {end}: "
                "the file is truncated, or something was appended to it"
            )
    if problems:
        raise refusal(problems)
    return entries


class _BadEntry(Exception):
    """An impossible entry in the header."""


def _entry(value: Any, start: int, file_size: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _BadEntry("its header entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _BadEntry(f"unknown dtype {shown(dtype)}")
    if not _sizes(shape) or len(shape) > 8:
        raise _BadEntry(f"{shown(shape)} is not a shape")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _BadEntry(f"{shown(offsets)} are not data offsets")
    entry = TensorEntry(dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])
    if entry.begin + entry.bytes > file_size:
        raise _BadEntry(
            f"its data ends at byte {entry.begin + entry.bytes}, the file at {file_size}"
        )
    if entry.elements * _SIZES[dtype] != entry.bytes:
        raise _BadEntry(f"{dtype} of shape {shown(shape)} does not take {entry.bytes} bytes")
    return entry


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 48 for one in value
    )
