"""A registry's home in a test: opened, closed and opened again; adapters as folders by seed."""

from collections.abc import Callable
from pathlib import Path

from lorry_adapters.registry.record import AdapterChoice, Lease
from lorry_adapters.registry.registry import Registry

WEIGHTS = "adapter_model.safetensors"

Open = Callable[..., Registry]
Files = Callable[[int], Path]


def acquire(registry: Registry, *names: str) -> Lease:
    return registry.acquire([AdapterChoice(name) for name in names])


def blobs(home: Path) -> set[str]:
    return {path.name.replace("-", ":") for path in (home / "blobs").iterdir()}


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
