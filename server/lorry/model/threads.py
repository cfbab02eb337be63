"""The number of threads that compute: the compiled step's, and PyTorch's own.

PyTorch counts the machine's cores, or takes OMP_NUM_THREADS. It ignores a container's quota: with
`docker run --cpus 2` on a machine of 64 cores it would start 64 threads, and the kernel would stop
all of them for most of each tenth of a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lorry_adapters.lora import control_groups


@dataclass(frozen=True, slots=True)
class Cores:
    """What this process may use of the machine."""

    allowed: int
    """Logical cores on which it may run."""
    quota: float | None
    """The processor time that it may use, in cores. None: no limit."""

    @property
    def count(self) -> int:
        """Whole cores for threads that compute. The rest of a quota goes to the other threads: one
        compute thread that is stopped in a step would hold up all others."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, int(self.quota)))


def usable_cores() -> Cores:
    """Return what the process's affinity and its control groups leave it."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = psutil.cpu_count() or 1
    return Cores(allowed, min(_quotas(), default=None))


def threads_of(asked: int, cores: Cores) -> int:
    """Return the number of threads that compute. `asked` is `--threads`; 0 chooses one."""
    return asked or min(torch.get_num_threads(), cores.count)


def use_threads(asked: int, say: Callable[[str], None]) -> None:
    """Set the threads of PyTorch, and of each compiled step that is built afterwards."""
    cores = usable_cores()
    if asked > cores.count:
        say(
            f"--threads {asked} is more than the {_cores(cores.count)} that this process may use: "
            "threads will wait for each other"
        )
    torch.set_num_threads(threads_of(asked, cores))


def described(asked: int, cores: Cores) -> str:
    """Say how many threads compute, and why."""
    text = f"{threads_of(asked, cores)} compute"
    if asked:
        text += ", as asked"
    else:
        variable = os.environ.get("OMP_NUM_THREADS")
        text += f"; torch counts {torch.get_num_threads()}"
        text += f" (OMP_NUM_THREADS={variable})" if variable else ""
    text += f"; this process may use {_cores(cores.allowed)}"
    return text if cores.quota is None else f"{text} and a quota of {cores.quota:g}"


def _cores(count: int) -> str:
    return f"{count} core{'s' if count != 1 else ''}"


def _quotas() -> list[float]:
    """Return the CPU quotas on this process, in cores."""
    found = []
    for version, folder in control_groups.folders("cpu"):
        quota = _version_2(folder) if version == 2 else _version_1(folder)
        if quota is not None:
            found.append(quota)
    return found


def _version_2(folder: Path) -> float | None:
    """`cpu.max` is `quota period`, in microseconds, or `max period`."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _version_1(folder: Path) -> float | None:
    """In microseconds; a quota of -1 is none."""
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)
