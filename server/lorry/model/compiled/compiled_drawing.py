"""`lorry.model.drawing` by the compiled library: the same bits, without a sort."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from lorry.model.guard import require

ROOM = 20
"""Bytes for a token: `step.h`."""


class CompiledDrawing:
    """Of fp32 rows on a CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        # Kept: fresh memory would cost more than the work that is done in it.
        self._room = np.empty(0, dtype=np.uint8)
        self._room_at = 0

    def keep_mass(
        self, probs_V: Tensor, preference_V: Tensor, mass: float, *, floor: float
    ) -> Tensor:
        require(len(preference_V) == len(probs_V), "not a preference for each token")
        kept_V = torch.empty_like(probs_V)
        self._library.lorry_keep_mass(
            _address(probs_V),
            _address(preference_V),
            floor,
            mass,
            len(probs_V),
            _address(kept_V),
            self._room_for(len(probs_V)),
        )
        return kept_V

    def draw(self, weights_V: Tensor, number: float) -> int:
        drawn: int = self._library.lorry_draw(
            _address(weights_V),
            float(weights_V.sum()),
            len(weights_V),
            number,
            self._room_for(len(weights_V)),
        )
        return drawn

    def _room_for(self, count: int) -> int:
        if len(self._room) < ROOM * count:
            self._room = np.empty(ROOM * count, dtype=np.uint8)
            self._room_at = self._room.ctypes.data
        return self._room_at


def _address(values_V: Tensor) -> int:
    require(
        values_V.dtype is torch.float32
        and values_V.device.type == "cpu"
        and values_V.is_contiguous(),
        "numbers of another kind where float32 in host memory is read",
    )
    return values_V.data_ptr()
