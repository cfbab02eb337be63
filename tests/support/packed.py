"""Archives of an adapter's files, and what comes of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lorry_adapters.errors import AdapterError, UnsupportedUpload
from lorry_adapters.registry.archive import Upload, unpack

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB = "adapter.safetensors"
FILES = {CONFIG: b'{"r": 8}', WEIGHTS: bytes(range(256)) * 1000}
MAX = 1 << 20

Members = Iterable[tuple[str, bytes]]
Pack = Callable[[Path, Members], Path]


def zipped(path: Path, members: Members, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members:
            out.writestr(name, data)
    return path


def tarred(mode: str) -> Pack:
    def pack(path: Path, members: Members) -> Path:
        with tarfile.open(path, mode) as out:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                if name.endswith("/"):
                    info.type = tarfile.DIRTYPE
                out.addfile(info, io.BytesIO(data))
        return path

    return pack


def stored(path: Path, members: Members) -> Path:
    return zipped(path, members, zipfile.ZIP_STORED)


PACKS = {"zip": zipped, "stored zip": stored, "tar": tarred("w"), "tar.gz": tarred("w:gz")}


def take(archive: Path, into: Path, max_bytes: int = MAX) -> dict[str, bytes]:
    unpack(Upload(archive=archive), into, max_bytes=max_bytes)
    assert all(path.is_file() and not path.is_symlink() for path in into.iterdir())
    return {path.name: path.read_bytes() for path in into.iterdir()}


def refused(
    archive: Path, into: Path, kind: type[AdapterError] = UnsupportedUpload, max_bytes: int = MAX
) -> str:
    before = set(into.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        unpack(Upload(archive=archive), into, max_bytes=max_bytes)
    new = set(into.parent.rglob("*")) - before
    assert {path.relative_to(into).as_posix() for path in new} <= {CONFIG, WEIGHTS}
    problems = getattr(caught.value, "problems", (caught.value.message,))
    assert all(problem.isascii() and len(problem) < 600 for problem in problems)
    return "; ".join(problems)
