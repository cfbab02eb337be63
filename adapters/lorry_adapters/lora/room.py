"""This process's memory: the amount that is left, and an error with numbers if it is too little.

The amount left is the least of the machine's available memory, the rest of the control group's
limit, and the rest of the process's address space limit (`ulimit -v`).
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil
import torch

from lorry_adapters.errors import OutOfMemory
from lorry_adapters.lora import memory_limit

_TORCH: Final = re.compile(r"can't allocate memory|not enough memory|DefaultCPUAllocator")
_ASKED: Final = re.compile(r"allocate (\d+) bytes")


def available() -> int:
    """Return the bytes that this process can still allocate."""
    left = [memory_limit.free()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        left.append(soft - int(psutil.Process().memory_info().vms))
    return max(0, min(left))


def require(needed: int, what: str) -> None:
    """Raise OutOfMemory unless `needed` bytes are left for `what`."""
    left = available()
    if needed > left:
        raise OutOfMemory(_said(what, needed, left))


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raise OutOfMemory, naming `what`, if the block runs out of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(_said(what, None, available())) from error
    except RuntimeError as error:
        # PyTorch's CPU allocator raises a plain RuntimeError.
        if _TORCH.search(str(error)) is None:
            raise
        asked = _ASKED.search(str(error))
        needed = int(asked[1]) if asked is not None else None
        raise OutOfMemory(_said(what, needed, available())) from error


def _said(what: str, needed: int | None, left: int) -> str:
    wants = f"needs {needed} bytes of memory" if needed is not None else "needs more memory"
    return (
        f"{what} {wants}, but the server has {left} left; try again when it has less to do, "
        "or give it more memory"
    )
