"""Archives that are to cost their server much more than they cost who sends them.

None of them is one that could be taken. Each has a few kilobytes to a few megabytes; what it
would unpack to, or what a careless reader would be busy with, is in its name.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from support.bad_uploads import CONFIG, WEIGHTS, Files, tar_of

_BLOCK = tarfile.BLOCKSIZE
_MIB = 1 << 20
_NO_MEMBER = b"PK\x03\x04" + bytes(26)


@dataclass(frozen=True)
class Hostile:
    """What is sent, made when it is asked for, and how it is refused."""

    make: Callable[[], bytes]
    status: int
    says: str = ""
    """What the message or one of the problems must contain, in lower case."""


def header(name: str, kind: bytes, size: int) -> bytes:
    """One block of a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header (or another extension) with these bytes in it."""
    return header("pax", kind, len(data)) + padded(data)


def record(key: str, value: str) -> bytes:
    """One of a pax header's records: its own length, key and value."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def summed(block: bytearray) -> bytes:
    """A header with its checksum set right again."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def zipped_once(parts: Iterator[bytes]) -> bytes:
    """A gzip of what is never in memory as a whole."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as packed:
        for part in parts:
            packed.write(part)
    return out.getvalue()


def hostile_archives(good: Files, *, mebibytes: int = 1100) -> dict[str, Hostile]:
    """By what they are. `good`: an adapter's two files, which most of them have as well;
    `mebibytes`: of zeros in a bomb."""
    tail = tar_of(good)

    def tar(*blocks: bytes) -> bytes:
        return b"".join(blocks) + tail

    def sparse_map() -> Iterator[bytes]:
        extension = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")
        yield extended(extension + record("GNU.sparse.name", WEIGHTS))
        numbers = b"0\n" * (8 * _MIB)
        size = 9 + 5 * len(numbers)
        yield header(WEIGHTS, tarfile.REGTYPE, size)
        yield b"20000000\n"
        for _ in range(5):
            yield numbers
        yield bytes(-size % _BLOCK) + bytes(2 * _BLOCK)

    def old_sparse() -> Iterator[bytes]:
        first = bytearray(header(WEIGHTS, tarfile.GNUTYPE_SPARSE, 0))
        first[482] = 1  # more places follow, in a block of their own
        yield summed(first)
        more = (b"0000000000\0 " * 42).ljust(504, b"0") + b"\1".ljust(8, b"\0")
        for _ in range(16):
            yield more * 8192

    def long_names(kind: bytes) -> Iterator[bytes]:
        for number in range(64):
            name = f"{number:08}".encode() + b"a" * (2 * _MIB - 64)
            yield extended(record("path", name.decode()) if kind == tarfile.XHDTYPE else name, kind)
            yield header("x", tarfile.REGTYPE, 0)
        yield tail

    def zeros() -> Iterator[bytes]:
        for _ in range(mebibytes):
            yield bytes(_MIB)

    def bomb() -> Iterator[bytes]:
        yield header(CONFIG, tarfile.REGTYPE, len(good[CONFIG])) + padded(good[CONFIG])
        yield header(WEIGHTS, tarfile.REGTYPE, mebibytes * _MIB)
        yield from zeros()

    def many() -> Iterator[bytes]:
        for number in range(20_000):
            yield header(f"{number}", tarfile.REGTYPE, 0)

    def huge_number() -> bytes:
        block = bytearray(header(WEIGHTS, tarfile.REGTYPE, 0))
        block[124:136] = b"\x80" + b"\xff" * 11
        return summed(block)

    digits = b"1" * 100_000
    empty = header("x", tarfile.REGTYPE, 0)
    sparse_list = ",".join(["0"] * 900_000)
    links = [_link(f"l{number}", f"l{number + 1}") for number in range(5000)]
    return {
        "a pax header of 100,000 digits": Hostile(lambda: tar(extended(digits)), 415, "records"),
        "a global pax header of 100,000 digits": Hostile(
            lambda: tar(extended(digits, b"g")), 415, "records"
        ),
        "a pax header whose size has 100,000 digits": Hostile(
            lambda: tar(extended(record("size", digits.decode())), empty), 415, "number"
        ),
        "a pax header of 200,000 records": Hostile(
            lambda: tar(extended(b"8 abc=d\n" * 200_000)), 415, "absurd size"
        ),
        "5,000 pax headers in a row": Hostile(
            lambda: tar(extended(record("comment", "x")) * 5000), 415, "headers"
        ),
        "5,000 long names in a row": Hostile(
            lambda: tar(extended(b"x\0", b"L") * 5000), 415, "headers"
        ),
        "128 MB of long names": Hostile(lambda: zipped_once(long_names(b"L")), 415, "absurd size"),
        "128 MB of pax paths": Hostile(lambda: zipped_once(long_names(b"x")), 415, "absurd size"),
        "a sparse map of 20 million numbers": Hostile(
            lambda: zipped_once(sparse_map()), 415, "sparse"
        ),
        "a sparse map of 900,000 numbers in a pax header": Hostile(
            lambda: tar(extended(record("GNU.sparse.map", sparse_list)), empty), 415, "absurd size"
        ),
        "an old sparse map without end": Hostile(lambda: zipped_once(old_sparse()), 415, "sparse"),
        "a number in base 256": Hostile(lambda: tar(huge_number()), 415, "damaged"),
        "5,000 links in a row": Hostile(lambda: tar_of(good, *links), 415, "link"),
        "20,000 members": Hostile(lambda: zipped_once(many()), 415, "members"),
        "a bomb in a gzip": Hostile(lambda: zipped_once(bomb()), 413, "more than"),
        "a gzip of a gzip": Hostile(
            lambda: gzip.compress(zipped_once(zeros()), mtime=0), 415, "damaged"
        ),
        "a bomb in a zip": Hostile(lambda: _zip_bomb(good, mebibytes), 413, "larger than"),
        "a zip of 20,000 overlapping members": Hostile(
            lambda: _overlapping(20_000), 415, "members"
        ),
        "a zip of names of 64 KiB": Hostile(lambda: _long_zip_names(15), 415, "characters"),
        "a zip of fields of 64 KiB": Hostile(lambda: _long_zip_fields(15), 422, "missing"),
        "a zip whose directory is 40 MB": Hostile(
            lambda: _large_directory(40 * _MIB), 415, "absurd size"
        ),
    }


def _link(name: str, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    return member


def _zip_bomb(good: Files, mebibytes: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr(CONFIG, good[CONFIG])
        with packed.open(WEIGHTS, "w", force_zip64=True) as member:
            for _ in range(mebibytes):
                member.write(bytes(_MIB))
    return out.getvalue()


def _zip_of_entries(entries: list[bytes], start: bytes) -> bytes:
    packed = b"".join(entries)
    shown = min(len(entries), 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, shown, shown, len(packed), len(start), 0)
    return start + packed + end


def _entry(name: bytes, fields: bytes = b"") -> bytes:
    """Of a directory: it stands for what lies at the archive's beginning."""
    numbers = (20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), len(fields), 0, 0, 0, 0, 0)
    return struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *numbers) + name + fields


def _overlapping(count: int) -> bytes:
    start = struct.pack("<4s2B4HL2L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    return _zip_of_entries([_entry(b"%d" % number) for number in range(count)], start)


def _long_zip_names(count: int) -> bytes:
    return _zip_of_entries([_entry(b"%08d" % n + b"a/" * 32_000) for n in range(count)], _NO_MEMBER)


def _long_zip_fields(count: int) -> bytes:
    fields = b"\xfe\xca\0\0" * 16_383
    return _zip_of_entries([_entry(b"%08d" % n, fields) for n in range(count)], _NO_MEMBER)


def _large_directory(size: int) -> bytes:
    return _zip_of_entries([_entry(b"%08d" % number) for number in range(size // 54)], _NO_MEMBER)
