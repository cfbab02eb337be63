"""A change of a few of a weight's numbers, as the compiled step reads it: `Sparse` of step.h.

Each number takes two bytes: its code, and how many columns it lies behind the one before it in
its output's row. Where that does not fit in a byte, zeros stand between them. Lanes of a group
end with zeros, too: within a window the outputs are ordered by what they have, so few are needed.

Letters: O outputs, I inputs, N numbers, E entries (numbers and zeros between them), G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorry.model.compiled import structs
from lorry.model.compiled.pack import BLOCK
from lorry.model.guard import require

WINDOW: Final = 32
"""Outputs: `SPARSE_WINDOW` of sparse.h."""
MOST: Final = 2 * BLOCK
"""Bytes of a number at most: where one output of its window has numbers and no other."""
MEANWHILE: Final = 80
"""Bytes for each number while they are packed."""
_FURTHEST: Final = 255
"""Columns between two entries."""
_CODES: Final = 127
_LEAST: Final = np.float32(1e-30)
"""What is smaller counts as nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedSparse:
    """Of one linear."""

    steps: NDArray[np.uint8]
    """[steps, 2, BLOCK]."""
    start_G: NDArray[np.int32]
    """And the end."""
    place_O: NDArray[np.uint8]
    scale_O: NDArray[np.float32]

    @property
    def struct(self) -> structs.SparseChange:
        """Holds as long as `self`."""
        parts = self.steps, self.start_G, self.place_O, self.scale_O
        return structs.SparseChange(*(part.ctypes.data for part in parts))

    @property
    def nbytes(self) -> int:
        parts = self.steps, self.start_G, self.place_O, self.scale_O
        return sum(part.nbytes for part in parts)


def codes_of(sparse_OI: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the code of each number, in the tensor's order, and the scale of each output's."""
    value_N = sparse_OI.values().float().numpy()
    row_N = _rows(sparse_OI)
    largest_O = np.zeros(sparse_OI.shape[0], dtype=np.float32)
    np.maximum.at(largest_O, row_N, np.abs(value_N))
    scale_O = np.where(largest_O < _LEAST, np.float32(0), largest_O / np.float32(_CODES))
    each_O = np.divide(np.float32(1), scale_O, out=np.zeros_like(scale_O), where=scale_O != 0)
    return np.rint(value_N * each_O[row_N]).astype(np.int8), scale_O


def pack_sparse(sparse_OI: Tensor) -> PackedSparse:
    """`sparse_OI`: by rows, the columns of each in order. Any thread."""
    outputs, inputs = sparse_OI.shape
    require(outputs % BLOCK == 0, f"a change of {outputs} outputs, not whole blocks")
    row_N, column_N = _rows(sparse_OI), sparse_OI.col_indices().numpy()
    before_N = np.concatenate([[0], column_N[:-1]])
    first_N = np.concatenate([[True], row_N[1:] != row_N[:-1]])[: len(row_N)]
    gap_N = np.where(first_N, column_N, column_N - before_N[: len(row_N)])
    require(
        not len(row_N) or (int(gap_N.min()) >= 0 and int(column_N.max()) < inputs),
        "a change whose places are in no order, or outside the weight",
    )
    code_N, scale_O = codes_of(sparse_OI)
    between_N = np.maximum(gap_N - 1, 0) // _FURTHEST
    last_N = np.cumsum(between_N + 1) - 1
    row_E = np.repeat(row_N, between_N + 1)
    gap_E = np.full(len(row_E), _FURTHEST, dtype=np.uint8)
    gap_E[last_N] = gap_N - between_N * _FURTHEST
    code_E = np.zeros(len(row_E), dtype=np.int8)
    code_E[last_N] = code_N

    count_O = np.bincount(row_E, minlength=outputs)
    window_O = np.arange(outputs) // WINDOW
    order_O = np.lexsort((-count_O, window_O))
    lane_O = np.empty(outputs, dtype=np.int64)
    lane_O[order_O] = np.arange(outputs)
    length_G = count_O[order_O].reshape(-1, BLOCK).max(1)
    start_G = np.concatenate([[0], np.cumsum(length_G)])
    start_O = np.cumsum(count_O) - count_O
    step_E = start_G[lane_O[row_E] // BLOCK] + np.arange(len(row_E)) - start_O[row_E]
    steps = np.zeros((int(start_G[-1]), 2, BLOCK), dtype=np.uint8)
    steps[step_E, 0, lane_O[row_E] % BLOCK] = gap_E
    steps[step_E, 1, lane_O[row_E] % BLOCK] = code_E.view(np.uint8)
    place_O = (order_O % WINDOW).astype(np.uint8)
    return PackedSparse(steps, start_G.astype(np.int32), place_O, scale_O)


def _rows(sparse_OI: Tensor) -> NDArray[np.int64]:
    count_O = np.diff(sparse_OI.crow_indices().numpy())
    return np.repeat(np.arange(len(count_O)), count_O)
