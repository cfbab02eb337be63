"""Products of packed weights outside a compiled step."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor

from lorry.model.compiled import structs
from lorry.model.compiled.pack import BLOCK

ROWS = 64
"""Rows of one product. More are multiplied in parts."""

TRIED = 19
"""Rows of a product that is tried: enough for AMX's tiles of 8-bit and of 4-bit weights, and a
multiple of neither's rows."""

TOLERANCE = 0.03
"""Of the largest number: the roundings of levels, of activations and of the head."""


class Multiplier:
    """The threads and the memory of products. One at a time, from one thread; it ends with the
    last linear that has it."""

    def __init__(self, library: ctypes.CDLL, widest: int, num_threads: int) -> None:
        """`widest`: inputs of a linear. Raises MemoryError where there is no memory or there are
        no threads."""
        self._library = library
        # A model without layers: its sizes are what the activations need.
        model = structs.Model(
            hidden=BLOCK, heads=1, kv_heads=1, head_size=BLOCK, inner=widest, vocab=BLOCK
        )
        self._model = model
        self._engine = library.lorry_engine(ctypes.byref(model), ROWS, 1, BLOCK, num_threads)
        if not self._engine:
            raise MemoryError("no memory or no threads for the compiled product")
        weakref.finalize(self, library.lorry_engine_free, self._engine)

    def __call__(self, linear: structs.Linear, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        x_TI = x.reshape(-1, linear.in_).float().contiguous()
        y_TO = torch.empty(len(x_TI), linear.out)
        for first in range(0, len(x_TI), ROWS):
            rows, answers = x_TI[first : first + ROWS], y_TO[first : first + ROWS]
            self._library.lorry_linear(
                self._engine, ctypes.byref(linear), rows.data_ptr(), answers.data_ptr(), len(rows)
            )
        return y_TO.view(*x.shape[:-1], linear.out)


def is_close(found: Tensor, exact: Tensor) -> bool:
    """True if they differ by no more than the rounding of packed products."""
    return bool((found - exact).abs().max() <= TOLERANCE * exact.abs().max())
