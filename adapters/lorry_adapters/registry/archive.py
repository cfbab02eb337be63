"""Unpacks an untrusted upload into a folder that contains an adapter's files and nothing else.

Zip, tar and tar.gz are read member by member. Files are written under our own names, so no
untrusted path reaches the file system. The adapter's folder may be at any depth of the archive,
and other files are never unpacked. From a trainer's whole output the adapter at its top is taken,
not those of its checkpoints and starting points. Otherwise two adapters, links, devices and paths
that lead out of the archive are refused. Sizes are counted while reading; declared sizes are not
trusted. `lora.weights.inspect` checks the files' contents.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, UnsupportedUpload, UploadTooLarge
from lorry_adapters.lora import words
from lorry_adapters.lora.config import MAX_CONFIG
from lorry_adapters.lora.problems import (
    foreign_weights,
    head_beside,
    pickled,
    shown,
    some,
)
from lorry_adapters.lora.weights import CONFIG_FILE, HUB_FILE, WEIGHTS_FILE
from lorry_adapters.registry.streams import Bounded, Gunzip
from lorry_adapters.registry.tar_members import ByteSpan, MemberKind, TarMember, tar_members

MAX_MEMBERS: Final = 10_000
MAX_PATH: Final = 4096
"""Characters; Linux has the same limit in bytes."""

_BESIDES: Final = 16 << 20
"""The most bytes of other files (a tokenizer, ...) beside the adapter in a compressed tar."""

_CHUNK: Final = 1 << 20
_ACCEPTED: Final = (
    f"accepted are a zip, tar or tar.gz with {CONFIG_FILE} and {WEIGHTS_FILE} in it, "
    "or those two files"
)
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS: Final = (b"\x80\x02", b"\x80\x04", b"\x80\x05")
_TRAINER: Final = ("training_args.", "optimizer.", "scheduler.", "rng_state", "scaler.")
"""Starts of the names of a trainer's checkpoint files, which are pickles but not weights."""

_BELOW: Final = re.compile(
    r"checkpoint-\d+|pissa_(?:init|backup|converted)|(?:olora|corda|loftq)_init", re.ASCII
)
"""Folders in a trainer's output with other adapters: stages of the one at its top, and its
starting point (Trainer, LLaMA-Factory)."""

_FOREIGN: Final = {
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}

_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,
)
"""Exceptions that the standard library raises for malformed archives."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The files of an upload: `archive`, or both of the others."""

    archive: Path | None = None
    config: Path | None = None
    weights: Path | None = None
    words: Mapping[str, Path] = field(default_factory=dict)
    """Optional files from `lora.words.SOURCES`, by name."""

    def __post_init__(self) -> None:
        files = (self.config is not None, self.weights is not None)
        assert files == ((False, False) if self.archive is not None else (True, True))


@dataclass(frozen=True, slots=True)
class _Member:
    """A regular file in an archive."""

    folder: str
    name: str
    open: Callable[[], IO[bytes] | ByteSpan]

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}" if self.folder else self.name


def unpack(upload: Upload, into: Path, *, max_bytes: int) -> None:
    """Write CONFIG_FILE, WEIGHTS_FILE, and the parts of the files of `lora.words.SOURCES` that are
    read to `into`, and nothing else.

    `max_bytes` limits the weights. Raises UnsupportedUpload, UploadTooLarge, InvalidAdapter (a file
    is missing), and OSError from writing; `into` must then be deleted.
    """
    if upload.archive is None:
        assert upload.config is not None and upload.weights is not None
        _refuse_pickle(upload.weights)
        with upload.config.open("rb") as source:
            _copy(source.read, into / CONFIG_FILE, MAX_CONFIG)
        with upload.weights.open("rb") as source:
            _copy(source.read, into / WEIGHTS_FILE, max_bytes)
        for name, path in upload.words.items():
            with path.open("rb") as source:
                _copy_start(source.read, into / name)
        return
    with _members(upload.archive, max_bytes) as members:
        config, weights = _choose(members)
        for member in members:  # in the archive's order: going back in a compressed tar starts over
            if member is config:
                _extract(member, into / CONFIG_FILE, MAX_CONFIG)
            elif member is weights:
                _extract(member, into / WEIGHTS_FILE, max_bytes)
            elif member.name in words.SOURCES and member.folder == config.folder:
                _extract(member, into / member.name, None)


def _copy(read: Callable[[int], bytes], to: Path, limit: int) -> None:
    with to.open("xb") as out:
        size = 0
        while chunk := read(_CHUNK):
            size += len(chunk)
            if size > limit:
                remedy = Remedy.RAISE_MAX_UPLOAD if to.name == WEIGHTS_FILE else None
                said = f"{to.name} is larger than {limit} bytes"
                raise UploadTooLarge(Problem(said, remedy, limit=limit))
            out.write(chunk)


def _copy_start(read: Callable[[int], bytes], to: Path) -> None:
    """Copy the part that `lora.words` reads and one more byte, which shows that there is more."""
    left = words.MAX_FILE + 1
    with to.open("xb") as out:
        while left and (chunk := read(min(_CHUNK, left))):
            left -= len(chunk)
            out.write(chunk)


def _extract(member: _Member, to: Path, limit: int | None) -> None:
    """Unpack a member. Without a `limit` only its start is unpacked."""
    what = f"member {shown(member.path)} of the archive"
    with _reading(what):
        file = member.open()

    def read(size: int) -> bytes:
        with _reading(what):  # without the writing: a full disk is not the archive's fault
            return file.read(size)

    with file:
        if limit is None:
            _copy_start(read, to)
        else:
            _copy(read, to, limit)


def _choose(members: list[_Member]) -> tuple[_Member, _Member]:
    configs = _topmost([member for member in members if member.name == CONFIG_FILE])
    weights = [member for member in members if member.name in (WEIGHTS_FILE, HUB_FILE)]
    if len(weights) > 1:
        weights = _topmost(weights)
    for name, found in ((CONFIG_FILE, configs), (WEIGHTS_FILE, weights)):
        if len(found) > 1:
            raise UnsupportedUpload(
                f"the archive has {len(found)} files {name} ({some(m.path for m in found)}): "
                "pack one adapter per archive"
            )
    strangers = {m.name: said for m in members if (said := foreign_weights(m.name)) is not None}
    pickles = [
        m
        for m in members
        if m.name.endswith(_PICKLES) and not m.name.startswith(_TRAINER) and m.name not in strangers
    ]
    if not weights and pickles:
        raise UnsupportedUpload(pickled(shown(pickles[0].path), pickles[0].name))
    problems = []
    if not configs:
        problems.append(f"{CONFIG_FILE} is missing from the archive")
    if not weights:
        missing = f"{WEIGHTS_FILE} is missing from the archive"
        problems.append(next(iter(strangers.values()), missing))
    if problems:
        has = some((member.path for member in members), 5) if members else "no files"
        last = Problem.within(f"{problems[-1]}; the archive has {has}", problems[-1])
        raise InvalidAdapter([*problems[:-1], last])
    if configs[0].folder != weights[0].folder:
        raise UnsupportedUpload(
            f"{shown(configs[0].path)} and {shown(weights[0].path)} are in different folders: "
            "pack one adapter's folder"
        )
    head = head_beside(member.name for member in members)
    if head is not None and weights[0].name == HUB_FILE:
        raise UnsupportedUpload(head)
    return configs[0], weights[0]


def _topmost(found: list[_Member]) -> list[_Member]:
    """Leave out the files of checkpoints and starting points below another adapter's folder."""
    above = {member.folder for member in found}

    def is_stage(folder: str) -> bool:
        parts = folder.split("/")
        stages = [at for at, part in enumerate(parts) if _BELOW.fullmatch(part)]
        return any("/".join(parts[:at]) in above for at in stages)

    return [member for member in found if not member.folder or not is_stage(member.folder)]


@contextmanager
def _members(archive: Path, max_bytes: int) -> Iterator[list[_Member]]:
    """Yield all regular files of the archive in order. It stays open in the block."""
    with archive.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            stream: Any = Bounded(file, None)
            with _reading("zip"):
                packed = zipfile.ZipFile(stream)
            with packed:
                yield _zip_members(packed)
        elif start[:2] == b"\x1f\x8b":
            limit = 2 * max_bytes + _BESIDES
            yield _tar_members(Bounded(Gunzip(file), limit), "tar.gz")
        elif start[257:262] == b"ustar":
            yield _tar_members(Bounded(file, None), "tar")
        elif start[:2] in _PICKLE_STARTS:
            said = pickled("the file")
            raise UnsupportedUpload(Problem.within(f"{said}; {_ACCEPTED}", said))
        else:
            raise UnsupportedUpload(f"the file is {_described(start)}; {_ACCEPTED}")


def _described(start: bytes) -> str:
    if not start:
        return "empty"
    for magic, name in _FOREIGN.items():
        if start.startswith(magic):
            return name
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return f"a safetensors file without its {CONFIG_FILE}"
    return "no archive"


def _refuse_pickle(weights: Path) -> None:
    with weights.open("rb") as file:
        start = file.read(4)
    if start[:2] in _PICKLE_STARTS or start == b"PK\x03\x04":
        raise UnsupportedUpload(pickled("the weights' file"))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Blame the archive for errors in the block, which must only read it."""
    try:
        yield
    except _DAMAGED as error:
        reason = ascii(str(error))[1:-1][:200] or type(error).__name__
        raise UnsupportedUpload(f"the {what} is truncated or damaged: {reason}") from None


def _zip_members(packed: zipfile.ZipFile) -> list[_Member]:
    members: list[_Member] = []
    seen: set[tuple[str, str]] = set()
    for info in packed.infolist():
        if len(members) >= MAX_MEMBERS:
            raise _too_many()
        # ZipInfo.filename ends at a NUL and uses this machine's separators; orig_filename does not.
        name = info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _special(name)
        folder_and_name = _safe(name)
        if info.is_dir() or kind == stat.S_IFDIR or name.endswith("\\"):
            continue
        if folder_and_name in seen:
            raise _twice(name)
        seen.add(folder_and_name)
        members.append(_Member(*folder_and_name, _zip_opener(packed, info)))
    return members


def _zip_opener(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        if info.flag_bits & 0x1:
            raise UnsupportedUpload(
                f"{shown(info.filename)} is encrypted: pack it without a password"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsupportedUpload(
                f"{shown(info.filename)} is compressed by method {info.compress_type}; "
                "pack the zip with deflate"
            )
        return packed.open(info)

    return opened


def _tar_members(file: Bounded, what: str) -> list[_Member]:
    members: list[_Member] = []
    seen: set[tuple[str, str]] = set()
    with _reading(what):
        for count, member in enumerate(tar_members(file), start=1):
            if count > MAX_MEMBERS:
                raise _too_many()
            folder_and_name = _safe(member.path)
            if member.kind is MemberKind.FOLDER:
                continue
            if member.kind is MemberKind.OTHER:
                raise _special(member.path)
            if folder_and_name in seen:
                raise _twice(member.path)
            seen.add(folder_and_name)
            members.append(_Member(*folder_and_name, _tar_opener(file, member)))
        while file.read(_CHUNK):  # a compressed tar has its checksum at the end
            pass
    return members


def _tar_opener(file: Bounded, member: TarMember) -> Callable[[], ByteSpan]:
    return lambda: ByteSpan(file, member)


def _safe(path: str) -> tuple[str, str]:
    """Return a member's folder and name. Raises UnsupportedUpload if the path leads elsewhere."""
    if len(path) > MAX_PATH:
        raise UnsupportedUpload(
            f"the archive has a member whose path has {len(path)} characters: {shown(path)}"
        )
    parts = path.replace("\\", "/").split("/")
    if not parts[0] or re.match(r"[A-Za-z]:", path) or ".." in parts or "\0" in path:
        raise UnsupportedUpload(
            f"the archive has a member {shown(path)}: absolute paths and .. are not accepted"
        )
    parts = [part for part in parts if part not in ("", ".")]
    return "/".join(parts[:-1]), parts[-1] if parts else ""


def _special(path: str) -> UnsupportedUpload:
    return UnsupportedUpload(
        Problem(
            f"{shown(path)} in the archive is a link or a device: pack plain files",
            Remedy.FOLLOW_LINKS,
        )
    )


def _twice(path: str) -> UnsupportedUpload:
    return UnsupportedUpload(f"the archive has the member {shown(path)} twice")


def _too_many() -> UnsupportedUpload:
    return UnsupportedUpload(f"the archive has more than {MAX_MEMBERS} members: pack one adapter")
