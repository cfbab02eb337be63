"""How many threads compute: those of the compiled step, and PyTorch's own.

PyTorch counts the machine's cores, or takes OMP_NUM_THREADS. It does not see what a container may
use of them: with `docker run --cpus 2` on a machine of 64 cores it would start 64 threads, and the
kernel would stop all of them for most of each tenth of a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch


@dataclass(frozen=True, slots=True)
class Cores:
    """What this process may use of the machine."""

    allowed: int
    """Logical cores on which it may run."""
    quota: float | None
    """The time that it may take on them, in cores; None: all of it."""

    @property
    def count(self) -> int:
        """A part of a core is left to the other threads: one that were stopped in the middle of a
        step would keep all others waiting."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, int(self.quota)))


def usable_cores(root: Path = Path("/")) -> Cores:
    """By the process's affinity and its control groups. `root`: of /proc and /sys."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = psutil.cpu_count() or 1
    return Cores(allowed, min(_quotas(root), default=None))


def threads_of(asked: int, cores: Cores) -> int:
    """Threads that compute. `asked`: as `--threads` has it, 0: as many as are useful."""
    return asked or min(torch.get_num_threads(), cores.count)


def use_threads(asked: int, say: Callable[[str], None]) -> None:
    """From here on PyTorch has so many threads, and a compiled step that is built, too."""
    cores = usable_cores()
    if asked > cores.count:
        say(
            f"--threads {asked} is more than the {_cores(cores.count)} that this process may use: "
            "threads will wait for each other"
        )
    torch.set_num_threads(threads_of(asked, cores))


def described(asked: int, cores: Cores) -> str:
    """How many, and why, for people."""
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


def _quotas(root: Path) -> list[float]:
    """In cores, of the process's control groups and of those around them.

    /proc/self/cgroup has a line `number:controllers:path` for each hierarchy, without controllers
    in version 2 (cgroups(7)). In a container the path may be one that only the host can see: then
    the root of the mounted hierarchy is the container's own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups, found = root / "sys/fs/cgroup", []
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if number == "0" and not controllers:
            mounts, quota_of = [groups, groups / "unified"], _version_2
        elif "cpu" in controllers.split(","):
            mounts, quota_of = [groups / controllers, groups / "cpu"], _version_1
        else:
            continue
        inside = PurePosixPath("" if ".." in path.split("/") else path.lstrip("/"))
        for mount in mounts:
            for at in (inside, *inside.parents):
                quota = quota_of(mount / at)
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
