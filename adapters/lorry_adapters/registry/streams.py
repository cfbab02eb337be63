"""Limited streams for reading untrusted archives.

`zipfile` reads a directory of any declared size at once, and processes it at a cost that can grow
with the square of its size. `gzip` reads a header byte by byte and unpacks without end. These
streams stop them.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO, Final

from lorry_adapters.errors import UnsupportedUpload, UploadTooLarge

MAX_READ: Final = 1 << 20
"""Bytes in one read; a zip's directory of that size has some 10,000 members."""

_CHUNK: Final = 1 << 16


class Bounded:
    """`file`, with limits on every single read and on the reader's position.

    Raises UnsupportedUpload beyond the first, UploadTooLarge beyond the second.
    """

    def __init__(self, file: BinaryIO | Gunzip, limit: int | None) -> None:
        self._file = file
        self._limit = limit

    def read(self, size: int = -1) -> bytes:
        wanted = size if 0 <= size <= MAX_READ else MAX_READ + 1
        data = self._file.read(wanted)
        if len(data) > MAX_READ:
            raise UnsupportedUpload("the archive declares a header or a directory of absurd size")
        self._check(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset, whence = self._file.tell() + offset, io.SEEK_SET
        if whence == io.SEEK_SET:
            if offset < 0:
                raise ValueError("an offset before the start")
            self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: whoever opened `file` closes it."""

    def _check(self, position: int) -> None:
        if self._limit is not None and position > self._limit:
            raise UploadTooLarge(
                f"the archive unpacks to more than {self._limit} bytes: pack the adapter alone"
            )


class Gunzip:
    """The unpacked content of a gzip file. Going back starts over.

    Raises EOFError if it is truncated, zlib.error if it is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._restart()

    def _restart(self) -> None:
        self._file.seek(0)
        self._unzip = zlib.decompressobj(wbits=31)  # with gzip's frame and checksum
        self._position = 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; fewer only at the end."""
        assert size >= 0
        parts = []
        while size > 0 and not self._unzip.eof:
            packed = self._unzip.unconsumed_tail or self._file.read(_CHUNK)
            part = self._unzip.decompress(packed, size)
            if not part and not packed:
                raise EOFError("the compressed data ends early")
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        if self._unzip.eof and (self._unzip.unused_data or self._file.read(1)):
            raise EOFError("there is more data after the compressed data")
        return b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek to `offset` from the start, or to the end if that comes first."""
        assert whence == io.SEEK_SET
        if offset < self._position:
            self._restart()
        while self._position < offset and self.read(min(offset - self._position, MAX_READ)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position
