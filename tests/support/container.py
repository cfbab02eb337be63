"""The files by which the kernel tells a process of its control groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_groups(root: Path, own: str, files: Mapping[str, str]) -> None:
    """Write /proc/self/cgroup, and `files` below /sys/fs/cgroup, under `root`."""
    groups = {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}
    for name, text in {"proc/self/cgroup": own, **groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
