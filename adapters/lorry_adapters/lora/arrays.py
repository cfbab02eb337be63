"""Zeroed arrays that cost memory only where they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def zeros(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.zeros`, but on a CPU the system provides each page when it is first written.

    `torch.zeros` itself writes every byte, and so makes a reserve of gigabytes resident.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(*shape)
