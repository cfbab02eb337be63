"""Activations in chunks, as the compiled product reads them.

`CHUNK` inputs become whole numbers of up to 7 bits and a sign, in units of their largest / 127. On
average that is 0.6 % of their standard deviation. A chunk that is much larger than its token's
chunks on average keeps 15 bits: outliers decide answers, and would blur the numbers beside them.

Linears of a layer read them so, in 4 and in 8 bits, if their inputs are whole chunks. Others,
output heads and adapters read the two rows of codes of `lorry.model.int8`.
"""

from __future__ import annotations

from torch import Tensor

CHUNK = 64
"""Inputs that share a scale; bitsandbytes' smallest block on a CPU."""

FAR_4_BITS = 2.0
"""A chunk with more than this many times the average keeps 15 bits where weights have 4."""

FAR_8_BITS = 1.5
"""The same where weights have 8, which blur an answer less themselves."""

_LARGEST_CODE = 127
_LOW_CODES = 254


def rounded(x: Tensor, far: float) -> Tensor:
    """The numbers `[.., I]` that are multiplied in place of `x`; I is whole chunks. `far`: from
    how many times the average on a chunk keeps 15 bits."""
    chunks = x.reshape(*x.shape[:-1], -1, CHUNK)
    absmax = chunks.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    units = chunks * (_LARGEST_CODE / absmax)
    high = units.round()
    both = high + ((units - high) * _LOW_CODES).round() / _LOW_CODES
    is_far = absmax > far * absmax.mean(-2, keepdim=True)
    return (both.where(is_far, high) * (absmax / _LARGEST_CODE)).flatten(-2)
