"""How much memory the system lets this process have: the machine's, or less in a container.

Docker and Kubernetes limit a container by a control group. psutil tells of the machine alone, and a
process that goes beyond its group's limit is killed. See cgroups(7) of Linux, and its
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")

OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class _Version:
    """What the files of a version are called."""

    mount: str
    limit: str
    used: str
    reclaimable: tuple[str, ...]
    """In `memory.stat`: pages of files, which count as used and are given back when needed."""


_V2 = _Version("", "memory.max", "memory.current", ("active_file", "inactive_file"))

_V1 = _Version(
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def total() -> int:
    """Bytes that this process could have at most."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits())])


def free() -> int:
    """Bytes that this process could still take."""
    left = (max(0, limit - used) for limit, used in _limits())
    return min([int(psutil.virtual_memory().available), *left])


def _limits() -> Iterator[tuple[int, int]]:
    """The limits of this process's group and of those around it, and what each uses."""
    for version, path in _groups():
        mount = GROUPS / version.mount
        # Without a namespace of its own a container sees its group at the mount, whatever its path.
        inside = mount / path.lstrip("/")
        for folder in dict.fromkeys([inside, *inside.parents, mount]):
            if folder == mount or mount in folder.parents:
                with suppress(OSError, ValueError):
                    limit = (folder / version.limit).read_text().strip()
                    if limit != "max":
                        yield int(limit), _used(folder, version)


def _used(folder: Path, version: _Version) -> int:
    used = int((folder / version.used).read_text())
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in version.reclaimable:
                used -= int(value)
    return max(0, used)


def _groups() -> Iterator[tuple[_Version, str]]:
    with suppress(OSError):
        for line in OWN.read_text().splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                yield _V2, path
            elif "memory" in controllers.split(","):
                yield _V1, path
