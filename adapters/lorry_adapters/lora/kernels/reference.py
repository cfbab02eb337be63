"""The oracle: one token, one adapter at a time, in fp32. Slow, and plainly right.

    y[t] += scale * B[slot] @ (A[slot] @ x[t])        for every pair (slot, t, scale)

LoRA: arXiv:2106.09685, equation 3; the factor alpha / r is folded into B when an
adapter is placed, so `scale` is only what the request asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def add_delta(
    y_TO: Tensor,
    x_TI: Tensor,
    a_SRI: Tensor,
    b_SRO: Tensor,
    pairs: Sequence[tuple[int, int, float]],
) -> None:
    """Adds every pair's delta to `y_TO` in place, computing in fp32."""
    delta_TO = torch.zeros(y_TO.shape, dtype=torch.float32, device=y_TO.device)
    for slot, token, scale in pairs:
        hidden_R = a_SRI[slot].float() @ x_TI[token].float()
        delta_TO[token] += scale * (hidden_R @ b_SRO[slot].float())
    y_TO += delta_TO.to(y_TO.dtype)
