"""The slots of the compiled step: adapters in half precision, one linear at a time.

A step with many adapters waits for their bytes, and half of them is half the wait.
What fp16 lacks is range: so A and B are each scaled by a power of two to lie just
below 1, and the product of the two is kept beside them as the slot's gain. Rounding
to 11 bits then costs a delta about 2^-12 of itself, and nothing can overflow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lorry.model.native import structs
from lorry_adapters.lora.arrays import zeros

if TYPE_CHECKING:
    from lorry_adapters.lora.weights import LoraPair

_CPU = torch.device("cpu")


class HalfSlots:
    """A `[S, R, I]` and B `[S, R, O]` of one linear. `struct` is what the step reads."""

    def __init__(self, num_slots: int, max_rank: int, in_features: int, out_features: int) -> None:
        self._shape = (num_slots + 1, max_rank)
        self._in, self._out = in_features, out_features
        self._a_SRI: Tensor | None = None
        self._b_SRO: Tensor | None = None
        self._rank_S = np.zeros(num_slots + 1, dtype=np.int32)
        self._gain_S = np.zeros(num_slots + 1, dtype=np.float32)
        self.struct = structs.Slots(
            None,
            None,
            self._rank_S.ctypes.data,
            self._gain_S.ctypes.data,
            in_features,
            out_features,
        )

    @property
    def nbytes(self) -> int:
        """Reserved; on a CPU what was never written takes no memory."""
        if self._a_SRI is None or self._b_SRO is None:
            return 0
        return self._a_SRI.nbytes + self._b_SRO.nbytes

    def bind(self, struct: structs.Slots) -> None:
        """`struct` is a copy of ours inside another structure: write there from now on."""
        self.struct = struct

    def place(self, slot: int, pair: LoraPair | None) -> None:
        """Copy `pair` into `slot`; None empties it. Not while a step runs."""
        assert 1 <= slot < len(self._rank_S)
        if pair is None:
            self._rank_S[slot] = 0
            return
        if self._a_SRI is None or self._b_SRO is None:
            self._a_SRI = zeros((*self._shape, self._in), dtype=torch.float16, device=_CPU)
            self._b_SRO = zeros((*self._shape, self._out), dtype=torch.float16, device=_CPU)
            self.struct.a_SRI = self._a_SRI.data_ptr()
            self.struct.b_SRO = self._b_SRO.data_ptr()
        rank = pair.a_RI.shape[0]
        assert rank <= self._shape[1]
        a_exponent = _store(self._a_SRI[slot, :rank], pair.a_RI.float())
        b_exponent = _store(self._b_SRO[slot, :rank], pair.b_OR.float().t())
        self._gain_S[slot] = math.ldexp(pair.scaling, a_exponent + b_exponent)
        self._rank_S[slot] = rank


def _store(target: Tensor, values: Tensor) -> int:
    """`values` over 2^exponent, so that the largest is in [0.5, 1); the exponent."""
    _, exponent = math.frexp(float(values.abs().max()))
    # 2^127 is the largest power that the product may be taken with in fp32.
    exponent = max(exponent, -127)
    target.copy_(values * math.ldexp(1.0, -exponent) if exponent else values)
    return exponent
