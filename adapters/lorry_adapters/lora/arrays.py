"""Zeroed arrays that cost memory only where they are written."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LINE = 64
"""Bytes of a processor's cache line."""

_DONT_NEED = 4
"""MADV_DONTNEED of Linux: the pages read as zeros, and cost memory only once they are written."""


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


def empty(part: Tensor) -> None:
    """Set a contiguous part of such an array to zero. On Linux its whole pages go back to the
    system."""
    assert part.is_contiguous()
    if part.device.type != "cpu" or sys.platform != "linux":
        part.zero_()
        return
    flat = part.view(-1).view(torch.uint8)
    start, end = flat.data_ptr(), flat.data_ptr() + flat.nbytes
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= last:
        part.zero_()
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    if madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONT_NEED):
        part.zero_()
        return
    flat[: first - start].zero_()
    flat[last - start :].zero_()
