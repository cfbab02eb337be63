"""Zeroed arrays that cost memory only where they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LINE = 64
"""Bytes of a processor's cache line."""


def zeros(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.zeros`, but on a CPU the system provides each page when it is first written.

    `torch.zeros` itself writes every byte, and so makes a reserve of gigabytes resident.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + LINE, dtype=np.uint8)
    # The system's pages come 16 bytes after a line's start: a head of 128 bytes would lie in three.
    first = -memory.ctypes.data % LINE
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(*shape)
