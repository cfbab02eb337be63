"""A trainer that pushes a version at every step: `PYTHONPATH=tests python -m support.pushes [N]`
prints what that takes of memory and disk."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.retention import Retention
from support.adapter_files import layout, save_adapter, upload
from support.registries import acquire


@dataclass(frozen=True)
class Taken:
    """After a number of pushes."""

    pushes: int
    versions: int
    blobs: int
    record_bytes: int
    """Of the JSON copy."""
    home_bytes: int
    contents: int
    """Known in memory."""
    peak_memory: int
    """Bytes, of the process so far."""


def pushing(home: Path, scratch: Path, pushes: int, keep: int, every: int) -> Iterator[Taken]:
    """Push `pushes` versions of `legal` and use each one, and tell what that took now and then."""
    registry = Registry(
        home,
        layout(),
        max_rank=8,
        max_upload=1 << 20,
        max_host_bytes=1 << 20,
        retention=Retention(versions=keep),
    )
    try:
        for number in range(1, pushes + 1):
            folder = save_adapter(scratch / "pushed", number)
            registry.add("legal", upload(folder), replace=True)
            lease = acquire(registry, "legal")
            registry.weights(lease.refs[0].digest)
            lease.release()
            shutil.rmtree(folder)
            if number % every == 0:
                (file,) = (home / "records").glob("legal-*.json")
                yield Taken(
                    number,
                    len(registry.get("legal").versions),
                    len(list((home / "blobs").glob("sha256-*"))),
                    file.stat().st_size,
                    sum(path.stat().st_size for path in home.rglob("*") if path.is_file()),
                    len(registry._inventory.digests()),
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
                )
    finally:
        registry.close()


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    keeping = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with tempfile.TemporaryDirectory() as root:
        places = Path(root) / "home", Path(root)
        for taken in pushing(*places, wanted, keeping, max(1, wanted // 10)):
            sys.stdout.write(f"{taken}\n")
            sys.stdout.flush()
