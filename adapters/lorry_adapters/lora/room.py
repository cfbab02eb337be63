"""Memory of this process: what is left, and an error with numbers where something finds too little.

What is left is the least of what the machine has, what the process's control group may still
take, and what its own limit of address space (`ulimit -v`) leaves.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import torch

from lorry_adapters.errors import OutOfMemory

_CGROUP: Final = Path("/sys/fs/cgroup")
_TORCH: Final = re.compile(r"can't allocate memory|not enough memory|DefaultCPUAllocator")
_ASKED: Final = re.compile(r"allocate (\d+) bytes")


def available() -> int:
    """Bytes that this process can still take."""
    left = [int(psutil.virtual_memory().available)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        left.append(soft - int(psutil.Process().memory_info().vms))
    group = _left_in_group()
    if group is not None:
        left.append(group)
    return max(0, min(left))


def require(needed: int, what: str) -> None:
    """OutOfMemory unless `needed` bytes are left for `what`."""
    left = available()
    if needed > left:
        raise OutOfMemory(_said(what, needed, left))


@contextmanager
def named(what: str) -> Iterator[None]:
    """Has a memory that runs out in the block told as OutOfMemory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(_said(what, None, available())) from error
    except RuntimeError as error:
        # PyTorch's own allocator for a CPU has no class for it.
        if _TORCH.search(str(error)) is None:
            raise
        asked = _ASKED.search(str(error))
        needed = int(asked[1]) if asked is not None else None
        raise OutOfMemory(_said(what, needed, available())) from error


def _said(what: str, needed: int | None, left: int) -> str:
    wants = f"needs {needed} bytes of memory" if needed is not None else "needs more memory"
    return (
        f"{what} {wants}, and {left} are left to the server; try again when it has less to do, "
        "or give it more"
    )


def _left_in_group() -> int | None:
    """Of the second version of control groups, as containers have it; None without a limit."""
    try:
        most = (_CGROUP / "memory.max").read_text().strip()
        if not most.isdigit():
            return None
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read count as used, and give way.
        return int(most) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
