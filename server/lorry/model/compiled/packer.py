"""`lorry.model.compiled.pack` in C, on several threads: a base of a billion weights in seconds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lorry.model.chunks import CHUNK
from lorry.model.compiled.pack import BLOCK, PackedLinear
from lorry.model.guard import require

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_WIDENED = 512
"""Rows that are widened at a time."""


class Packer:
    """Whoever makes one closes it. Any thread."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self._library = library
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads)

    def close(self) -> None:
        self._pool.shutdown()

    def quantized(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """Of floats, which are widened to fp32 a few rows at a time: int8 codes `[O, I]`, and the
        scale of each row, fp32."""
        out, inputs = weight_OI.shape
        require(
            weight_OI.dtype in _FLOATS and weight_OI.is_contiguous() and inputs % BLOCK == 0,
            f"a weight of {weight_OI.dtype}, {out} x {inputs}",
        )
        codes_OI = torch.empty(out, inputs, dtype=torch.int8)
        scale_O = torch.empty(out)

        def some(first: int, rows: int) -> None:
            for start in range(first, first + rows, _WIDENED):
                part_OI = weight_OI[start : min(start + _WIDENED, first + rows)].float()
                self._library.lorry_quantize8(
                    *(part_OI.data_ptr(), len(part_OI), inputs),
                    *(codes_OI[start:].data_ptr(), scale_O[start:].data_ptr()),
                )

        self._in_parts(out, some)
        return codes_OI, scale_O

    def int8(
        self, codes_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, *, is_head: bool = False
    ) -> PackedLinear:
        """`O` of any number: outputs up to a whole block are zeros. `is_head`: it reads two rows of
        codes, as do linears whose inputs are not whole chunks."""
        out, inputs = codes_OI.shape
        require(
            codes_OI.dtype is torch.int8 and codes_OI.is_contiguous() and inputs % BLOCK == 0,
            f"codes of {codes_OI.dtype}, {out} x {inputs}",
        )
        blocks = -(-out // BLOCK)
        packed = torch.zeros(blocks, inputs // 4, BLOCK, 4, dtype=torch.int8)
        sum_O = torch.zeros(blocks * BLOCK, dtype=torch.int32)

        def some(first: int, rows: int) -> None:
            self._library.lorry_pack8(
                *(codes_OI[first:].data_ptr(), rows, inputs),
                *(packed[first // BLOCK :].data_ptr(), sum_O[first:].data_ptr()),
            )

        self._in_parts(out, some)
        return PackedLinear(
            codes=packed,
            scale_O=_filled(scale_O.float(), blocks * BLOCK, 1),
            sum_O=sum_O if is_head or inputs % CHUNK else None,
            bias_O=None if bias_O is None else _filled(bias_O.float(), blocks * BLOCK, 0),
            out_features=blocks * BLOCK,
            in_features=inputs,
        )

    def tensors(self, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """Of a linear of ours in either number of bits, as its `base_tensors` has them."""
        if "levels" in tensors:
            return self.four_bits(tensors)
        return self.int8(tensors["codes"].contiguous(), tensors["scale"], tensors.get("bias"))

    def four_bits(self, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """Of a `FourBitLinear`'s tensors. `O` of any number: outputs up to a whole block are
        zeros."""
        missing = -len(tensors["codes"]) % BLOCK
        tensors = {
            name: tensor if name == "levels" or not missing else _longer(tensor, missing)
            for name, tensor in tensors.items()
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        out, inputs = tensors["codes"].shape[0], 2 * tensors["codes"].shape[1]
        require(inputs % CHUNK == 0, f"{inputs} inputs, not whole chunks")
        chunks = inputs // CHUNK
        packed = torch.empty(out // BLOCK, inputs // 8, BLOCK, 4, dtype=torch.uint8)
        chunk_scale = torch.empty(out // BLOCK, chunks, BLOCK, dtype=torch.float16)

        def some(first: int, rows: int) -> None:
            self._library.lorry_pack4(
                tensors["codes"][first:].data_ptr(),
                tensors["chunk_scale"][first:].data_ptr(),
                *(rows, inputs),
                packed[first // BLOCK :].data_ptr(),
                chunk_scale[first // BLOCK :].data_ptr(),
            )

        self._in_parts(out, some)
        return PackedLinear(
            codes=packed,
            scale_O=tensors["scale"].clone(),
            levels=tensors["levels"].clone(),
            chunk_scale=chunk_scale,
            bias_O=tensors.get("bias"),
            out_features=out,
            in_features=inputs,
        )

    def _in_parts(self, rows: int, some: Callable[[int, int], None]) -> None:
        """Calls `some(first row, rows)`, whole blocks at a time, until all rows are done."""
        blocks = -(-rows // BLOCK)
        each = max(1, -(-blocks // self._num_threads)) * BLOCK
        parts = [(first, min(each, rows - first)) for first in range(0, rows, each)]
        for done in [self._pool.submit(some, *part) for part in parts]:
            done.result()


def _longer(values_O: Tensor, missing: int) -> Tensor:
    """Return the tensor with zeros at the end of its first dimension."""
    return torch.cat([values_O, values_O.new_zeros(missing, *values_O.shape[1:])])


def _filled(values_O: Tensor, size: int, value: float) -> Tensor:
    more = values_O.new_full((size - len(values_O),), value)
    return torch.cat([values_O, more]) if len(more) else values_O.clone()
