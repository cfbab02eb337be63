"""A safetensors file, read with distrust: the header first, then tensors in memory of their own.

Format: 8 bytes, the header's length N, little-endian; N bytes of JSON, name -> {"dtype",
"shape", "data_offsets": [begin, end)} counted from the header's end; then the data, which
the tensors cover without gap or overlap (https://huggingface.co/docs/safetensors).

Nothing is mapped: a tensor that aliased a file would change, or crash the process, with it.
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
"""As many as the largest mixtures of experts need, with a pair for each expert."""

MAX_NAME: Final = 1024
"""Characters of a tensor's name."""

_BESIDE: Final = 50_000
_MARKS: Final = {
    b"{": MAX_TENSORS + _BESIDE,
    b"[": 2 * MAX_TENSORS + _BESIDE,
    b":": 4 * MAX_TENSORS + _BESIDE,
    b",": 8 * MAX_TENSORS + _BESIDE,
}
"""How often they stand in a header of that many tensors, with something over for __metadata__.
What is made of a header takes many times its bytes, in one call that holds the interpreter."""

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""What an adapter may be stored in."""

PLACES: Final[Mapping[str, torch.dtype]] = {
    "I32": torch.int32,
    "I64": torch.int64,
    "F32": torch.float32,
}
"""What places in a weight may be stored in; as floats by PEFT on Windows."""

_READ: Final = {**DTYPES, **PLACES}

_NOT_COMPUTED: Final = frozenset({"F64", "F8_E4M3", "F8_E5M2"})
"""Read as float32, as PEFT's own parameters hold them."""

_SIZES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    dtype: str
    """As the file spells it: `F32`, ..."""
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
    """An open file whose header has been checked against the file's size.

    Raises InvalidAdapter with every lie found in the header; OSError as `open` does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.places: set[str] = set()
        """Names that `read_places` was asked for."""
        # Unbuffered: tensors are read into their own memory in one go.
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
        """Bytes that its tensors take once they are read."""
        return sum(
            4 * entry.elements if entry.dtype in _NOT_COMPUTED else entry.bytes
            for entry in self.entries.values()
        )

    def read(self, name: str) -> torch.Tensor:
        """The tensor in host memory that belongs to nothing else, in a type to compute in.

        Raises InvalidAdapter where the file has become shorter than it was.
        """
        return self._read(self.entries[name])

    def read_places(self, name: str, end: int) -> torch.Tensor:
        """Places in something of `end` places, as int64.

        Raises InvalidAdapter where one is no whole number from 0 on and below `end`.
        """
        self.places.add(name)
        stored = self._read(self.entries[name])
        if not stored.is_floating_point():
            stored = stored.to(torch.int64)  # `end` may be more than 32 bits hold
        # NaN is within no bounds.
        if not bool(((stored >= 0) & (stored < end) & (stored == stored.floor())).all()):
            raise InvalidAdapter(
                [f"{shown(name)} holds numbers that are no places from 0 to {end - 1}"]
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
                    f"{name} is not a safetensors file, or is truncated: its first bytes promise "
                    f"a header of {length} bytes, the file has {size}"
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
            raise ValueError("a name stands in it twice")
        return found

    if any(text.count(mark) > most for mark, most in _MARKS.items()):
        raise InvalidAdapter([f"{name}: the header is of more than {MAX_TENSORS} tensors"])
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
        raise InvalidAdapter([f"{name}: the header is of more than {MAX_TENSORS} tensors"])
    longest = max(map(len, header), default=0)
    if longest > MAX_NAME:
        raise InvalidAdapter(
            [f"{name}: the header has a name of {longest} characters; at most {MAX_NAME} are read"]
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
        except _Lie as lie:
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
                f"{name} has {file_size} bytes, its header accounts for {end}: "
                "the file is truncated, or has something else appended"
            )
    if problems:
        raise refusal(problems)
    return entries


class _Lie(Exception):
    """What an entry of the header says that cannot be."""


def _entry(value: Any, start: int, file_size: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _Lie("its header entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _Lie(f"unknown dtype {shown(dtype)}")
    if not _sizes(shape) or len(shape) > 8:
        raise _Lie(f"{shown(shape)} is not a shape")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Lie(f"{shown(offsets)} are not data offsets")
    entry = TensorEntry(dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])
    if entry.begin + entry.bytes > file_size:
        raise _Lie(f"its data ends at byte {entry.begin + entry.bytes}, the file at {file_size}")
    if entry.elements * _SIZES[dtype] != entry.bytes:
        raise _Lie(f"{dtype} of shape {shown(shape)} does not take {entry.bytes} bytes")
    return entry


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 48 for one in value
    )
