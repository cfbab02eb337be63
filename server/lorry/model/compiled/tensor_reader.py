"""A file of safetensors, read into memory of its own on several threads.

safetensors maps the file, and a copy out of the mapping takes three times as long: each of its
small pages is a fault. What is read here lies at the start of an allocation, and nothing keeps the
file open.
"""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
"""The names of the dtypes that packed linears have."""

_LENGTH = 8
"""Size of the header's length in bytes."""

_PIECE = 16 << 20
"""Bytes that one thread reads at a time."""

_LARGEST_HEADER = 100 << 20
"""The longest header in bytes; safetensors has the same limit."""


def read_tensors(file: Path, num_threads: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Its metadata, and its tensors by name. Raises OSError, and ValueError, KeyError or TypeError
    where it is not what safetensors writes."""
    handle = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        length = int.from_bytes(os.pread(handle, _LENGTH, 0), "little")
        start = _LENGTH + length
        if length > _LARGEST_HEADER or start > size:
            raise ValueError("its header is cut off")
        header: dict[str, Any] = json.loads(os.pread(handle, length, _LENGTH))
        metadata: dict[str, str] = header.pop("__metadata__")

        def read(item: tuple[str, Any]) -> tuple[str, Tensor]:
            name, entry = item
            dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
            first, end = entry["data_offsets"]
            nbytes = math.prod(shape) * dtype.itemsize
            if not 0 <= first <= end <= size - start or end - first != nbytes:
                raise ValueError(f"{name} is not where the header says")
            tensor = torch.empty(shape, dtype=dtype)
            _read_into(handle, _bytes_of(tensor), start + first)
            return name, tensor

        with ThreadPoolExecutor(num_threads) as pool:
            return metadata, dict(pool.map(read, header.items()))
    finally:
        os.close(handle)


def fill(handle: int, tensor: Tensor, offset: int) -> None:
    """Fill a contiguous tensor with what lies at `offset` of a file that is open, on PyTorch's
    number of threads. Raises OSError, and ValueError where the file is shorter."""
    room = _bytes_of(tensor)
    starts = range(0, len(room), _PIECE)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda at: _read_into(handle, room[at : at + _PIECE], offset + at), starts))


def _bytes_of(tensor: Tensor) -> memoryview:
    # As bytes: numpy knows no bfloat16.
    return tensor.flatten().view(torch.uint8).numpy().data


def _read_into(handle: int, room: memoryview, offset: int) -> None:
    while room:
        count = os.preadv(handle, [room], offset)
        if not count:
            raise ValueError("the file ends early")
        room, offset = room[count:], offset + count
