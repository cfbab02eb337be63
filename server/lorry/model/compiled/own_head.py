"""An output head of an adapter's own, in 8 bits as the base's: a scale for each output.

In fp32 eight heads of the default base are 900 MB that a step has to read. The thread that fetches
the adapter packs its head, once; a step multiplies it in place of the base's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorry.model.compiled import structs
from lorry.model.compiled.pack import BLOCK, PackedLinear
from lorry.model.compiled.widened import widened
from lorry.model.guard import require
from lorry_adapters.lora import room
from lorry_adapters.lora.matrix_deltas import OwnLinear

_ROWS = 256 * BLOCK
"""Outputs that are quantized at a time: those are copied to fp32."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedHead:
    """Keeps the linear's memory alive."""

    packed: PackedLinear
    words: int
    """Number of tokens that it knows: the first ones of the base's vocabulary."""

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


@dataclass(frozen=True, slots=True)
class HeadRun:
    """Wanted tokens `first` to `last` - 1 have this head."""

    head: PackedHead
    first: int
    last: int


def pack_own_head(library: ctypes.CDLL, own: OwnLinear, inputs: int, vocab: int) -> PackedHead:
    """`inputs` and `vocab`: the base's. Any thread.

    Raises:
        OutOfMemory.
    """
    words, width = own.weight_OI.shape
    require(
        width == inputs and words <= vocab and inputs % BLOCK == 0,
        f"a head of {words} x {width}, not of {vocab} x {inputs}",
    )
    room.require(words * inputs + 5 * min(words, _ROWS) * inputs, "an adapter's output head")
    outputs = widened(words)
    codes = torch.zeros(outputs // BLOCK, inputs // 4, BLOCK, 4, dtype=torch.int8)
    scale_O, sum_O = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    codes_RI = torch.empty(min(words, _ROWS), inputs, dtype=torch.int8)
    for first in range(0, words, _ROWS):
        rows_RI = own.weight_OI[first : first + _ROWS].float().contiguous()
        size = (len(rows_RI), inputs)
        at = scale_O[first:].data_ptr()
        library.lorry_quantize8(rows_RI.data_ptr(), *size, codes_RI.data_ptr(), at)
        library.lorry_pack8(
            *(codes_RI.data_ptr(), *size, codes[first // BLOCK :].data_ptr()),
            sum_O[first:].data_ptr(),
        )
    bias_O = None
    if own.bias_O is not None:
        bias_O = torch.zeros(outputs)
        bias_O[:words] = own.bias_O
    packed = PackedLinear(codes, scale_O, outputs, inputs, bias_O, sum_O)
    packed.check()
    return PackedHead(packed, words)


class HeadArrays:
    """The own heads of a step as `step.h` wants them; keeps their memory."""

    def __init__(self, runs: Sequence[HeadRun], wanted: int) -> None:
        """`runs`: disjoint. `wanted`: tokens that have a head, the base's or their own."""
        self._runs = runs
        self._linears = (structs.Linear * len(runs))(*(run.head.packed.struct for run in runs))
        size = ctypes.sizeof(structs.Linear)
        start = ctypes.addressof(self._linears)
        self.structs = (structs.OwnHead * len(runs))(
            *(
                structs.OwnHead(start + at * size, run.first, run.last, run.head.words)
                for at, run in enumerate(runs)
            )
        )
        for run in runs:
            require(0 <= run.first < run.last <= wanted, f"heads of {run.first} to {run.last}")
        self.replace_all = sum(run.last - run.first for run in runs) == wanted
