"""An adapter's bytes, to and from a server: streamed, with a progress bar in a terminal."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from lorry.cli.bars import Advance, transfer
from lorry.cli.server_connection import Connection
from lorry.errors import LorryError
from lorry_adapters.errors import Problem
from lorry_adapters.lora.problems import (
    HUB_PICKLE,
    PICKLE,
    foreign_weights,
    head_beside,
    pickled,
    shown,
)
from lorry_adapters.lora.words import SOURCES

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HUB_FILE = "adapter.safetensors"
"""AdapterHub's name of the weights."""
PICKLE_FILES = (PICKLE, HUB_PICKLE)

CHUNK = 1 << 20


class LocalFileError(LorryError):
    """A file or folder of the user's that is not there, or is not what it should be."""


def parts(path: Path) -> dict[str, Path]:
    """The files to send, by the name of their form field. Raises LocalFileError."""
    if path.is_file():
        return {"file": path}
    if not path.is_dir():
        raise LocalFileError(f"{path} does not exist")
    found = {name: path / name for name in (CONFIG_FILE, WEIGHTS_FILE)}
    if not found[WEIGHTS_FILE].is_file() and (path / HUB_FILE).is_file():
        found[WEIGHTS_FILE] = path / HUB_FILE
        head = head_beside(file.name for file in path.iterdir())
        if head is not None:
            raise LocalFileError(f"{path}/{head}")
    missing = [name for name, file in found.items() if not file.is_file()]
    pickles = [path / name for name in PICKLE_FILES if (path / name).is_file()]
    if WEIGHTS_FILE in missing and pickles:
        raise LocalFileError(pickled(shown(str(pickles[0])), pickles[0].name))
    strangers = (foreign_weights(file.name) for file in sorted(path.iterdir()))
    said = next((words for words in strangers if words is not None), None)
    if WEIGHTS_FILE in missing and said is not None:
        raise LocalFileError(Problem.within(f"{path}: {said}", said))
    if missing:
        raise LocalFileError(f"{path} has no {' and no '.join(missing)}; is it a PEFT adapter?")
    return {**found, **{name: path / name for name in SOURCES if (path / name).is_file()}}


def upload(server: Connection, route: str, path: Path, fields: dict[str, str]) -> Any:
    """Send `path` as a form with `fields`; the server's record."""
    files = parts(path)
    total = sum(file.stat().st_size for file in files.values())
    with ExitStack() as stack, transfer(f"pushing {path.name or path}", total) as advance:
        form = {}
        for field, file in files.items():
            try:
                stream = stack.enter_context(file.open("rb"))
            except OSError as error:
                raise LocalFileError(f"{file} cannot be read: {error.strerror or error}") from error
            form[field] = (file.name, _Counted(stream, advance), "application/octet-stream")
        return server.request("POST", route, data=fields, files=form)


def download(server: Connection, route: str, folder: Path, title: str) -> list[str]:
    """The files of the tar at `route`, in `folder`, which is new or empty; their names.

    `folder` appears with everything in it or not at all.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LocalFileError(f"{folder} exists and is not an empty folder")
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with server.stream("GET", route) as response:
            length = response.headers.get("content-length")
            with transfer(f"pulling {title}", int(length) if length else None) as advance:
                names = _extract(_Incoming(response.iter_bytes(CHUNK), advance), partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except tarfile.TarError as error:
        raise LocalFileError(f"the server's archive is broken: {error}") from error
    except OSError as error:
        raise LocalFileError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def _extract(stream: io.RawIOBase, folder: Path) -> list[str]:
    names = []
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            # A server is not trusted with the user's other files: plain names, plain files.
            if not member.isfile() or Path(member.name).name != member.name:
                raise tarfile.TarError(f"unexpected member {member.name!r}")
            source = archive.extractfile(member)
            assert source is not None
            with source, (folder / member.name).open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            names.append(member.name)
    return sorted(names)


class _Counted:
    """A file that tells how much of it was read. Not an IO subclass: httpx asks for little."""

    def __init__(self, stream: IO[bytes], advance: Advance) -> None:
        self._stream = stream
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._advance(len(data))
        return data

    def fileno(self) -> int:
        return self._stream.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


class _Incoming(io.RawIOBase):
    """The chunks of an answer as a file to read from."""

    def __init__(self, chunks: Iterator[bytes], advance: Advance) -> None:
        self._chunks = chunks
        self._advance = advance
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._chunks, b"")
            self._advance(len(self._rest))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
