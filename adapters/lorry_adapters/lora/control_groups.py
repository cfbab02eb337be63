"""The control groups that limit this process, as in a container.

See cgroups(7) of Linux, and its Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

ROOT = Path("/")
"""Of /proc and /sys."""

Version = Literal[1, 2]


def folders(controller: str) -> Iterator[tuple[Version, Path]]:
    """Yield the folders of this process's groups and of those around them, innermost first.

    `controller` is "memory", "cpu" or the like. Some folders may not exist.
    """
    mounted = ROOT / "sys/fs/cgroup"
    for version, controllers, path in _groups(controller):
        if version == 2:
            mounts = [mounted, mounted / "unified"]
        else:
            mounts = [mounted / controllers, mounted / controller]
        # A container without a namespace of its own is told the host's path, and sees its own
        # group at the mount.
        inside = PurePosixPath("" if ".." in path.split("/") else path.lstrip("/"))
        for mount in dict.fromkeys(mounts):
            for at in (inside, *inside.parents):
                yield version, mount / at


def _groups(controller: str) -> Iterator[tuple[Version, str, str]]:
    """Yield version, controllers and path of the process's groups with this controller."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if number == "0" and not controllers:
            yield 2, "", path
        elif controller in controllers.split(","):
            yield 1, controllers, path
