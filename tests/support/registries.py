"""A registry's home in a test: opened, closed and opened again; adapters as folders by seed."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lorry_adapters.registry.record import AdapterChoice, Lease
from lorry_adapters.registry.registry import Registry

WEIGHTS = "adapter_model.safetensors"

Open = Callable[..., Registry]
Files = Callable[[int], Path]


def acquire(registry: Registry, *names: str) -> Lease:
    return registry.acquire([AdapterChoice(name) for name in names])


def with_lease(registry: Registry, name: str) -> None:
    """Read an adapter's weights as a request does."""
    lease = acquire(registry, name)
    try:
        assert registry.weights(lease.refs[0].digest).digest == lease.refs[0].digest
    finally:
        lease.release()


def leave_cache(home: Path) -> None:
    """Empty the folder that is the store's cache."""
    shutil.rmtree(home / "blobs")
    (home / "blobs").mkdir()


def blobs(home: Path) -> set[str]:
    return {path.name.replace("-", ":") for path in (home / "blobs").iterdir()}


def left_in_store(store: Path) -> set[str]:
    """The contents of which a store in a folder has anything, complete or not."""
    found = set()
    for folder in store.glob("sha256-*"):
        # A thread may delete it meanwhile.
        with suppress(FileNotFoundError):
            if any(folder.iterdir()):
                found.add(folder.name.replace("-", ":"))
    return found


def copy_home(home: Path, to: Path) -> None:
    """What a crash at this moment leaves."""
    # Graves are being emptied by a thread, and a copy would stumble over it.
    shutil.copytree(home, to, ignore=shutil.ignore_patterns("gone-*"))


def emptied(catalog: Path) -> None:
    catalog.write_bytes(b"")


def missing(catalog: Path) -> None:
    for path in catalog.parent.glob("catalog.sqlite3*"):
        path.unlink()


def file_missing(catalog: Path) -> None:
    """Its write-ahead log is still there, with all that it holds."""
    catalog.unlink(missing_ok=True)


def garbage(catalog: Path) -> None:
    catalog.write_bytes(b"These are not the tables you are looking for. " * 100)


def bad_header(catalog: Path) -> None:
    write_at(catalog, 16, b"\xff" * 48)


def bad_pages(catalog: Path) -> None:
    size = catalog.stat().st_size if catalog.exists() else 0
    write_at(catalog, 4096, b"\xff" * max(4096, size - 4096))


def bad_log(catalog: Path) -> None:
    """All that was not in the file itself yet is lost, and SQLite does not say so."""
    log = catalog.with_name(catalog.name + "-wal")
    if log.exists():
        log.write_bytes(b"\x37" * log.stat().st_size)


def cut_log(catalog: Path) -> None:
    log = catalog.with_name(catalog.name + "-wal")
    if log.exists():
        log.write_bytes(log.read_bytes()[: 32 + 24 + 100])


def write_at(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes() if path.exists() else b"")
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


DAMAGES = (emptied, missing, file_missing, garbage, bad_header, bad_pages, bad_log, cut_log)
"""What can happen to a catalog while nobody has it open."""


def damage(registry: Registry, name: str, how: str) -> None:
    folder = registry.folder(registry.get(name).current.digest)
    if how == "folder gone":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif how == "file gone":
        (folder / WEIGHTS).unlink()
    elif how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])
    else:
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
