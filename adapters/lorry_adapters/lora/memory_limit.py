"""How much memory the system lets this process have: the machine's, or less in a container.

Docker and Kubernetes limit a container by a control group. psutil reports the machine alone, and
the kernel kills a process that exceeds its group's limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from lorry_adapters.lora import control_groups


@dataclass(frozen=True, slots=True)
class _Files:
    """The names of a version's files."""

    limit: str
    used: str
    reclaimable: tuple[str, ...]
    """In `memory.stat`: pages of files, which count as used and are given back when needed."""


_FILES: Final[Mapping[control_groups.Version, _Files]] = {
    1: _Files(
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
    2: _Files("memory.max", "memory.current", ("active_file", "inactive_file")),
}


def total() -> int:
    """Return the bytes that this process could have at most."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits())])


def free() -> int:
    """Return the bytes that this process could still take."""
    left = (max(0, limit - used) for limit, used in _limits())
    return min([int(psutil.virtual_memory().available), *left])


def _limits() -> Iterator[tuple[int, int]]:
    """Yield each limit on this process, and what is used of it."""
    for version, folder in control_groups.folders("memory"):
        files = _FILES[version]
        with suppress(OSError, ValueError):
            limit = (folder / files.limit).read_text().strip()
            if limit != "max":
                yield int(limit), _used(folder, files)


def _used(folder: Path, files: _Files) -> int:
    used = int((folder / files.used).read_text())
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in files.reclaimable:
                used -= int(value)
    return max(0, used)
