"""Reads the members of an untrusted tar from its headers, without unpacking anything.

Python's `tarfile` trusts an archive: it searches headers of any size with regular expressions,
builds a sparse file's map before it is needed, and calls itself for each header that follows
another. Here every number is checked before it is used (server/decisions/0020). This subset
covers tars of plain files:

    ustar, GNU and pax headers; sizes in octal or base 256; GNU's long names; pax's `path`
    and `size`. Other fields of a pax header are ignored.

A sparse file is refused, because the member does not contain the file's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from lorry_adapters.errors import Problem, Remedy, UnsupportedUpload
from lorry_adapters.lora.problems import shown
from lorry_adapters.registry.streams import Bounded

BLOCK: Final = 512
MAX_EXTENSION: Final = 256 << 10
"""The most bytes of one long name or pax header. Extended attributes of files take the most."""

MAX_EXTENSIONS: Final = 8 << 20
"""The most bytes of all extensions together."""

_MAX_SIZE: Final = 1 << 40
"""Bytes. No upload is this large, and every file system accepts positions up to it."""

_MAX_IN_FRONT: Final = 8
"""The most extensions before one member: a long name, a long link, two pax headers, and spare."""

_REGULAR: Final = (b"0", b"\0", b"7")
_FOLDER: Final = b"5"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_PAX: Final = (b"x", b"X")
_PAX_GLOBAL: Final = b"g"
_SPARSE: Final = b"S"
_SPARSE_KEYS: Final = b"GNU.sparse."
_DIGITS: Final = 8
"""Digits of a pax record's length; 256 KiB has six."""


class DamagedTar(ValueError):
    """The archive contradicts itself."""


class MemberKind(Enum):
    FILE = "a file"
    FOLDER = "a folder"
    OTHER = "a link or a device"


@dataclass(frozen=True, slots=True)
class TarMember:
    path: str
    """The archive's own spelling, with undecodable bytes as lone surrogates."""
    kind: MemberKind
    start: int
    """Bytes from the archive's beginning."""
    size: int


def tar_members(file: Bounded) -> Iterator[TarMember]:
    """Yield the members in order, up to the end mark or the end of the file.

    A member's bytes can be read when it is yielded. Raises DamagedTar, UnsupportedUpload (a sparse
    file, or extensions beyond the limits), and whatever `file` raises.
    """
    headers = _Headers(file)
    while (member := headers.next()) is not None:
        yield member


class ByteSpan:
    """The bytes of one member, as a file."""

    def __init__(self, file: Bounded, member: TarMember) -> None:
        self._file = file
        self._at = member.start
        self._left = member.size

    def read(self, size: int) -> bytes:
        """Returns fewer than `size` bytes only at the end. Raises DamagedTar if the archive ends
        early."""
        wanted = min(size, self._left)
        self._file.seek(self._at)
        data = self._file.read(wanted) if wanted else b""
        if len(data) < wanted:
            raise DamagedTar("unexpected end of data")
        self._at += wanted
        self._left -= wanted
        return data

    def close(self) -> None:
        """Do nothing: whoever opened the archive closes it."""

    def __enter__(self) -> ByteSpan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Headers:
    def __init__(self, file: Bounded) -> None:
        self._file = file
        self._next = 0
        self._extensions = 0

    def next(self) -> TarMember | None:
        path: bytes | None = None
        size: int | None = None
        for _ in range(_MAX_IN_FRONT + 1):
            block = self._block()
            if block is None:
                return None
            kind = block[156:157]
            if kind in (_LONG_NAME, _LONG_LINK):
                name = self._extension(block).partition(b"\0")[0]
                path = name if kind == _LONG_NAME else path
            elif kind in _PAX:
                records = _records(self._extension(block))
                path = records.get(b"path", path)
                size = _decimal(records[b"size"]) if b"size" in records else size
            elif kind == _PAX_GLOBAL:
                if {b"path", b"size"} & _records(self._extension(block)).keys():
                    raise UnsupportedUpload(
                        "the archive names all its members at once, in a global pax header"
                    )
            else:
                return self._member(block, path, size)
        raise UnsupportedUpload(f"a member of the archive has more than {_MAX_IN_FRONT} headers")

    def _member(self, block: bytes, path: bytes | None, size: int | None) -> TarMember:
        kind = block[156:157]
        name = _name(block) if path is None else path
        if kind == _SPARSE:
            raise _sparse(name)
        if kind not in _REGULAR or (kind == b"\0" and name.endswith(b"/")):
            # No data follows those, whatever their size field contains.
            is_folder = kind in (_FOLDER, b"\0")
            return TarMember(
                _text(name), MemberKind.FOLDER if is_folder else MemberKind.OTHER, self._next, 0
            )
        size = _number(block[124:136]) if size is None else size
        if size > _MAX_SIZE:
            raise DamagedTar("unexpected end of data")
        start = self._next
        self._skip(size)
        return TarMember(_text(name), MemberKind.FILE, start, size)

    def _block(self) -> bytes | None:
        """Return the next header, or None at the end."""
        self._file.seek(self._next)
        block = self._file.read(BLOCK)
        if not block or block == bytes(BLOCK):
            if self._next == 0:
                raise DamagedTar("it is empty")
            return None
        if len(block) < BLOCK:
            raise DamagedTar("it ends in the middle of a header")
        if _number(block[148:156]) not in _sums(block):
            raise DamagedTar("a header's checksum is wrong")
        self._next += BLOCK
        return block

    def _extension(self, block: bytes) -> bytes:
        size = _number(block[124:136])
        self._extensions += size
        if size > MAX_EXTENSION or self._extensions > MAX_EXTENSIONS:
            raise UnsupportedUpload("the archive declares headers of absurd size")
        data = self._file.read(size)
        self._skip(size)
        return data

    def _skip(self, size: int) -> None:
        """Skip `size` bytes and the padding of their last block."""
        if size:
            self._file.seek(self._next + size - 1)
            if not self._file.read(1):
                raise DamagedTar("unexpected end of data")
        self._next += size + -size % BLOCK


def _records(data: bytes) -> dict[bytes, bytes]:
    """Parse a pax header: `<length> <key>=<value>\\n`, with the length of the whole record."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + _DIGITS + 1)
        end = at + _decimal(data[at:space]) if space > at else at
        equals = data.find(b"=", space, end)
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise DamagedTar("a pax header is not a list of records")
        key = data[space + 1 : equals]
        if key.startswith(_SPARSE_KEYS):
            raise _sparse(found.get(b"path", b""))
        if key in (b"path", b"size"):
            found[key] = data[equals + 1 : end - 1]
        at = end
    return found


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise DamagedTar("a number in a pax header is malformed")
    return int(text)


def _number(field: bytes) -> int:
    """Parse an octal number, or a big-endian one after the byte 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        raise DamagedTar("a number in a header is malformed")
    return int(text or b"0", 8)


def _sums(block: bytes) -> tuple[int, int]:
    """Return the checksums of a header with its checksum field read as blanks: the sum of unsigned
    bytes, and that of signed bytes, which some old programs wrote."""
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 32
    return unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    # GNU's own headers use the bytes of POSIX' path prefix for other fields.
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _sparse(path: bytes) -> UnsupportedUpload:
    return UnsupportedUpload(
        Problem(
            f"the archive has a sparse file{f' {shown(_text(path))}' if path else ''}: pack it "
            "without holes",
            Remedy.FILL_HOLES,
        )
    )
