"""An adapter as the compiled step reads it: 8-bit codes, all modules in one piece of memory.

A step with many adapters waits for their bytes, so each number takes one. What is lost
is chosen to be lost where it counts least:

    A[r] = codes * row_scale[r] / 127          every row by its own largest
    B'   = B * row_scale * alpha / r / 127     so that all of A's codes are worth the same
    B'[o] = codes * scale[o]                   every output by its own largest

A column of B' carries what its row of A can contribute, so an output's few codes go to the
ranks that matter. `scale` is a bfloat16, rounded up and then divided by, and so no
source of error. A delta is off by about 0.5 % of itself; the base's own int8 rows are by 0.8 %
of the base's part, which is many times the delta's (tests/oracle/test_compiled.py).

The order of the pieces is that in which a step comes to them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.compiled.embedding_head import EmbeddingHead
from lorry.model.compiled.pack import BLOCK, padded
from lorry.model.guard import require

if TYPE_CHECKING:
    from lorry.model.compiled.packed_vectors import VectorDeltas
    from lorry.model.compiled.shared_pairs import SharedPart
    from lorry_adapters.lora.parts import LoraPair

CODES = 127
LEAST = 1e-30
"""What is smaller counts as nothing."""

LINE = 64
"""Every piece begins at a cache line."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """Ready to be placed."""

    memory: NDArray[np.uint8]
    places_M3: NDArray[np.int64]
    """Of each linear of the model: where in `memory` its A and its B begin, and its rank, padded
    to a multiple of `GROUP`; 0 where the adapter has no such part."""
    vectors: VectorDeltas | None = None
    """What it does beside its pairs."""
    embedding_head: EmbeddingHead = field(default_factory=EmbeddingHead)
    """What it does to embeddings and logits."""
    shared: Mapping[int, SharedPart] = field(default_factory=dict)
    """Pairs of matrices that adapters share, by index of the linear."""

    @property
    def nbytes(self) -> int:
        vectors = 0 if self.vectors is None else self.vectors.nbytes
        shared = sum(part.nbytes for part in self.shared.values())
        return self.memory.nbytes + vectors + self.embedding_head.nbytes + shared

    @property
    def rank(self) -> int:
        """The largest of any linear, padded."""
        shared = (part.pair.rank for part in self.shared.values())
        return max([int(self.places_M3[:, 2].max(initial=0)), *shared])


def pack_adapter(
    library: ctypes.CDLL,
    pairs: Mapping[str, LoraPair],
    phases: Sequence[Sequence[str]],
    vectors: VectorDeltas | None = None,
) -> PackedAdapter:
    """`pairs`: by linear, a DoRA's too. `phases`: the linears of the model in the order in which
    a step reads their adapters; those of one phase read the same input. Any thread may.

    Raises:
        MemoryError.
    """
    places, end = _lay_out(pairs, phases)
    placed = sum(rank > 0 for _, _, rank in places.values())
    require(placed == len(pairs), f"{len(pairs)} pairs, {placed} of them on linears of the step")
    # Pages of its own, which go back to the system with it, whatever the allocator does.
    memory = np.frombuffer(mmap.mmap(-1, max(end, 1)), dtype=np.uint8)
    start = memory.ctypes.data
    for name, pair in pairs.items():
        a_at, b_at, _ = places[name]
        a_RI, b_OR = pair.a_RI.float().contiguous(), pair.b_OR.float().contiguous()
        require(
            a_RI.shape[1] % BLOCK == b_OR.shape[0] % BLOCK == 0,
            f"{name}: {a_RI.shape[1]} to {b_OR.shape[0]} features, not whole blocks of {BLOCK}",
        )
        # Between two modules a step that has ended gets its turn: ctypes lets go of the lock.
        failed = library.lorry_pack(
            a_RI.data_ptr(),
            b_OR.data_ptr(),
            pair.scaling,
            *(a_RI.shape[0], a_RI.shape[1], b_OR.shape[0]),
            start + a_at,
            start + b_at,
        )
        if failed:
            raise MemoryError("no memory to pack an adapter")
    return PackedAdapter(memory, np.array(list(places.values()), dtype=np.int64), vectors)


def _lay_out(
    pairs: Mapping[str, LoraPair], phases: Sequence[Sequence[str]]
) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Where everything goes, and where it ends."""
    places: dict[str, tuple[int, int, int]] = {}
    end = 0
    for names in phases:
        starts: dict[str, int] = {}
        for name in names:
            pair = pairs.get(name)
            if pair is not None:
                starts[name] = end
                end = _aligned(end + _a_bytes(pair))
        for name in names:
            pair = pairs.get(name)
            if pair is None:
                places[name] = (0, 0, 0)
            else:
                places[name] = (starts[name], end, padded(pair.a_RI.shape[0]))
                end = _aligned(end + _b_bytes(pair))
    return places, end


def _aligned(offset: int) -> int:
    return -(-offset // LINE) * LINE


def _a_bytes(pair: LoraPair) -> int:
    rank = padded(pair.a_RI.shape[0])
    return rank * pair.a_RI.shape[1] + rank * np.dtype(np.int32).itemsize


def _b_bytes(pair: LoraPair) -> int:
    rank = padded(pair.a_RI.shape[0])
    return pair.b_OR.shape[0] * (rank + np.dtype(np.uint16).itemsize)


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """One module's part: A = a_codes * row_scale, and so on as this file's head has it."""

    a_RI: Tensor
    """int8."""
    b_OR: Tensor
    """int8."""
    scale_O: Tensor
    """bfloat16, the scale of a code of B'."""

    def delta(self, x_TI: Tensor) -> Tensor:
        """In fp64, for what the compiled step is compared with."""
        hidden_TR = x_TI.double() @ self.a_RI.double().t()
        return hidden_TR @ self.b_OR.double().t() * self.scale_O.double()


def codes_of(pair: LoraPair) -> Codes:
    """What `lorry_pack` makes of a pair, step by step, in numpy: torch divides by a number by
    multiplying with its inverse, and the last bits are another's then."""
    a_RI, b_OR = pair.a_RI.float().numpy(), pair.b_OR.float().numpy()
    codes = np.float32(CODES)
    largest_R = np.maximum(np.abs(a_RI).max(1), np.float32(LEAST))
    b_OR = b_OR * (largest_R / codes * np.float32(pair.scaling))
    largest_O = np.abs(b_OR).max(1)
    scale_O = np.where(largest_O < LEAST, np.float32(0), _round_up(largest_O / codes))
    each_O = np.divide(np.float32(1), scale_O, out=np.zeros_like(scale_O), where=scale_O != 0)
    return Codes(
        torch.from_numpy(np.rint(a_RI * (codes / largest_R)[:, None]).astype(np.int8)),
        torch.from_numpy(np.rint(b_OR * each_O[:, None]).astype(np.int8)),
        torch.from_numpy(scale_O).to(torch.bfloat16),
    )


def _round_up(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the next bfloat16, so that the codes of the largest stay within a byte."""
    return ((values.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
