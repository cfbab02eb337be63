"""What an adapter does with matrices beside its pairs, as the compiled step reads it.

At one scale s such an adapter adds to a linear's answer

    s * (w1 (x) w2) x           LoKr, in fp32: two small products
    base(x + s * M x) - base(x) OFT: M of blocks along its diagonal, in half precision
    s * S x                     a change of a few numbers: codes of 8 bits and their places
    s * D x                     any other change of a weight: D in 8 bits, a scale for each output

None of them depends on the scale; a bound table has it beside their addresses (`packed_vectors`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.compiled import structs
from lorry.model.compiled.pack import BLOCK, PackedLinear
from lorry.model.compiled.packed_sparse import MEANWHILE as SPARSE_MEANWHILE
from lorry.model.compiled.packed_sparse import MOST as SPARSE_MOST
from lorry.model.compiled.packed_sparse import pack_sparse
from lorry.model.compiled.widened import widened
from lorry.model.guard import require
from lorry_adapters.lora import room
from lorry_adapters.lora.matrix_deltas import BoundChange, BoundKronecker, BoundTurn
from lorry_adapters.lora.sparse import BoundSparse
from lorry_adapters.lora.vector_deltas import Delta

FIELDS = ("turn", "kronecker", "dense", "sparse")
"""Of `structs.VectorDelta`."""

ROOM = 4096
"""Floats that every step has for a Kronecker product: `PRODUCT_ROOM` of `engine.h`."""

MATRICES = (BoundTurn, BoundKronecker, BoundChange, BoundSparse)


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrices:
    """Of one adapter; keeps the memory that `addresses_M3` points to."""

    addresses_M3: NDArray[np.uint64]
    """Addresses for each linear of the model, in the order of `FIELDS`. 0: none."""
    nbytes: int
    _keep: tuple[object, ...]


def room_of(delta: BoundKronecker) -> int:
    """Working memory that a step needs for it, in floats."""
    (a, c), b = delta.w1_ac.shape, delta.w2_bd.shape[0]
    return int((a + c) * widened(b))


def pack_matrices(
    library: ctypes.CDLL, deltas: Mapping[str, Sequence[Delta]], names: Sequence[str]
) -> PackedMatrices | None:
    """None where there are none. `names`: the linears of the step. Any thread.

    Raises:
        OutOfMemory.
    """
    addresses_M3 = np.zeros((len(names), len(FIELDS)), dtype=np.uint64)
    keep: list[object] = []
    nbytes = 0
    changes = [d for mine in deltas.values() for d in mine if isinstance(d, BoundChange)]
    room.require(sum(d.change_OI.numel() for d in changes), "an adapter's changes of weights")
    sparse = [d for mine in deltas.values() for d in mine if isinstance(d, BoundSparse)]
    numbers = [d.sparse_OI.values().numel() for d in sparse]
    room.require(
        SPARSE_MOST * sum(numbers) + SPARSE_MEANWHILE * max(numbers, default=0),
        "an adapter's changes of a few numbers",
    )
    for module, name in enumerate(names):
        for delta in deltas.get(name, ()):
            if isinstance(delta, BoundTurn):
                column, (struct, held, size) = 0, _turn(delta)
            elif isinstance(delta, BoundKronecker):
                column, (struct, held, size) = 1, _kronecker(delta)
            elif isinstance(delta, BoundChange):
                column, (struct, held, size) = 2, _dense(library, delta)
            elif isinstance(delta, BoundSparse):
                column, (struct, held, size) = 3, _sparse(delta)
            else:
                continue
            addresses_M3[module, column] = ctypes.addressof(struct)
            keep += [struct, held]
            nbytes += size
    return PackedMatrices(addresses_M3, nbytes, tuple(keep)) if keep else None


Packed = tuple[ctypes.Structure, object, int]
"""A C structure, the objects that own its memory, and their size in bytes."""


def _turn(delta: BoundTurn) -> Packed:
    blocks, size, _ = delta.blocks_NSS.shape
    # By input, then by what it adds to.
    packed = torch.zeros(blocks, size, widened(size), dtype=torch.float16)
    packed[:, :, :size] = delta.blocks_NSS.transpose(1, 2)
    struct = structs.TurnBlocks(packed.data_ptr(), size, widened(size))
    return struct, packed, packed.nbytes


def _kronecker(delta: BoundKronecker) -> Packed:
    (a, c), (b, d) = delta.w1_ac.shape, delta.w2_bd.shape
    w1_AC = delta.w1_ac.float().contiguous()
    w2_DB = torch.zeros(d, widened(b))
    w2_DB[:, :b] = delta.w2_bd.T
    struct = structs.KroneckerFactors(w1_AC.data_ptr(), w2_DB.data_ptr(), a, b, c, d, widened(b))
    return struct, (w1_AC, w2_DB), w1_AC.nbytes + w2_DB.nbytes


def _dense(library: ctypes.CDLL, delta: BoundChange) -> Packed:
    linear = quantized(library, delta.change_OI)
    return linear.struct, linear, linear.nbytes


def _sparse(delta: BoundSparse) -> Packed:
    packed = pack_sparse(delta.sparse_OI)
    return packed.struct, packed, packed.nbytes


def quantized(library: ctypes.CDLL, weight_OI: Tensor) -> PackedLinear:
    """In 8 bits, a scale for each output."""
    weight_OI = weight_OI.float().contiguous()
    out, inputs = weight_OI.shape
    require(out % BLOCK == inputs % BLOCK == 0, f"a change of {out} x {inputs}, not whole blocks")
    codes_OI = torch.empty(out, inputs, dtype=torch.int8)
    packed = torch.zeros(out // BLOCK, inputs // 4, BLOCK, 4, dtype=torch.int8)
    scale_O, sum_O = torch.empty(out), torch.empty(out, dtype=torch.int32)
    library.lorry_quantize8(
        *(weight_OI.data_ptr(), out, inputs, codes_OI.data_ptr(), scale_O.data_ptr())
    )
    library.lorry_pack8(codes_OI.data_ptr(), out, inputs, packed.data_ptr(), sum_O.data_ptr())
    linear = PackedLinear(packed, scale_O, out, inputs, None, sum_O)
    linear.check()
    return linear
