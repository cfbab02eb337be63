"""The weights of a GGUF file in a file of safetensors: linears in the blocks of the GGUF file, all
else in fp32.

transformers' names and layout are those of the model, so the rows of a linear's blocks may come in
another order than in the GGUF file. A block is read as numbers when the loader asks for its tensor
(`weights_of`), which a quantized base does for one tensor after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

FILE = "model.safetensors"

_KEY = "gguf"
"""Of the metadata: the type of each tensor that is in blocks, a number of GGUF's, and its shape in
numbers."""

_PIECE = 1 << 20
"""Numbers that are made of blocks at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """What becomes one tensor of the file."""

    name: str
    """transformers' name."""
    shape: tuple[int, ...]
    """In numbers."""
    blocks: gguf.ReaderTensor
    order: NDArray[np.int64] | None = None
    """The rows of `blocks`, as transformers has them. None: all in their order."""
    processed: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    """What makes the tensor of the numbers in `blocks`, if it is more than an order of rows."""
    dense: bool = False
    """Stored in fp32."""

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape) if self.dense else int(self.blocks.data.nbytes)

    def entry(self, offset: int) -> dict[str, Any]:
        """Of the header of safetensors."""
        data = self.blocks.data
        shape = self.shape if self.dense else (self.nbytes // _row_bytes(data), _row_bytes(data))
        return {
            "dtype": "F32" if self.dense else "U8",
            "shape": list(shape),
            "data_offsets": [offset, offset + self.nbytes],
        }

    def pieces(self) -> Iterator[NDArray[Any]]:
        """Its bytes, a piece at a time where that is possible."""
        data, kind = self.blocks.data, self.blocks.tensor_type
        if self.processed is not None:
            values = self.processed(gguf.quants.dequantize(data, kind))
            yield np.ascontiguousarray(values, dtype=np.float32)
            return
        rows = data.reshape(-1, data.shape[-1])
        step = max(1, _PIECE // (math.prod(self.shape) // len(rows)))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            piece = rows[some] if self.order is None else rows[self.order[some]]
            if self.dense:
                piece = gguf.quants.dequantize(piece, kind)
            yield np.ascontiguousarray(piece)


def write(tensors: Sequence[StoredTensor], folder: Path, tell: Callable[[int], None]) -> None:
    """Write the file into `folder`. `tell` is told how many numbers are done."""
    header: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = tensor.entry(offset)
        offset += tensor.nbytes
    blocks = {
        tensor.name: [int(tensor.blocks.tensor_type), list(tensor.shape)]
        for tensor in tensors
        if not tensor.dense
    }
    header["__metadata__"] = {"format": "pt", **({_KEY: json.dumps(blocks)} if blocks else {})}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with (folder / FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            for piece in tensor.pieces():
                file.write(piece.data)
            done += math.prod(tensor.shape)
            tell(done)


def weights_of(folder: Path) -> dict[str, Any] | None:
    """The tensors in `folder` by transformers' names, for its loader, which reads each with
    `[...]`; None where none is in blocks."""
    blocks = _blocks_in(folder)
    if not blocks:
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        found: dict[str, Any] = {
            name: _Lazy(folder / FILE, name, *blocks[name])
            if name in blocks
            else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118, a handle is not a mapping
        }
    return found


def weights_in(folder: Path) -> int | None:
    """The number of weights in `folder`; None where no tensor is in blocks."""
    blocks = _blocks_in(folder)
    if not blocks:
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        return sum(
            math.prod(blocks[name][1] if name in blocks else file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
        )


def _blocks_in(folder: Path) -> Mapping[str, tuple[int, Sequence[int]]]:
    if not (folder / FILE).is_file():
        return {}
    with safe_open(folder / FILE, framework="pt") as file:
        metadata = file.metadata() or {}
    found: Mapping[str, tuple[int, Sequence[int]]] = json.loads(metadata.get(_KEY, "{}"))
    return found


@dataclass(frozen=True, slots=True)
class _Lazy:
    file: Path
    name: str
    kind: int
    shape: Sequence[int]

    def __getitem__(self, _everything: object) -> Tensor:
        with safe_open(self.file, framework="np") as file:
            blocks = file.get_tensor(self.name)
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(self.kind))
        return torch.from_numpy(values).reshape(tuple(self.shape))


def _row_bytes(data: NDArray[Any]) -> int:
    """F16 and BF16 have rows of numbers, all others of bytes."""
    return int(data.shape[-1] * data.itemsize)
