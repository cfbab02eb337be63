"""The files of a stored adapter as a tar, produced while it is read."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lorry_adapters.registry.blobs import files_in

_CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


class Tarball(Iterator[bytes]):
    """Chunks of an uncompressed tar, with the same bytes for the same content every time.

    The files are opened at construction, so it can be read to its end even if the adapter is
    removed meanwhile. Close it if it is not read to its end.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        """Raises OSError if a file is missing, ValueError if the files no longer have `digest`."""
        self._names = files_in(folder)
        self._files: list[BinaryIO] = []
        self._sizes: list[int] = []
        try:
            manifest = hashlib.sha256()
            for name in self._names:
                file = (folder / name).open("rb")
                self._files.append(file)
                content = hashlib.file_digest(file, "sha256").hexdigest()
                self._sizes.append(file.tell())
                file.seek(0)
                manifest.update(f"{content}  {name}\n".encode())
            if f"sha256:{manifest.hexdigest()}" != digest:
                raise ValueError(f"the files in {folder} were changed")
        except BaseException:
            self.close()
            raise
        self._chunks = self._produce()

    @property
    def size(self) -> int:
        """Return the size of the whole tar in bytes, for Content-Length."""
        members = sum(_BLOCK + size + -size % _BLOCK for size in self._sizes)
        return members + 2 * _BLOCK

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _produce(self) -> Iterator[bytes]:
        for name, file, size in zip(self._names, self._files, self._sizes, strict=True):
            member = tarfile.TarInfo(name)
            member.size = size
            yield member.tobuf(tarfile.USTAR_FORMAT)
            while chunk := file.read(_CHUNK):
                yield chunk
            yield b"\0" * (-size % _BLOCK)
        yield b"\0" * (2 * _BLOCK)
        self.close()
