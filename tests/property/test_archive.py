"""Archives nobody would pack: any bytes give two files or a named error, and touch nothing else."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lorry_adapters.errors import InvalidAdapter, UnsupportedUpload, UploadTooLarge
from lorry_adapters.registry.archive import Upload, unpack
from lorry_adapters.registry.streams import Bounded
from lorry_adapters.registry.tar_members import ByteSpan, MemberKind, tar_members

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX = 1 << 16

_names = st.one_of(
    st.sampled_from(
        [CONFIG, WEIGHTS, "README.md", f"a/{CONFIG}", f"a/{WEIGHTS}", "adapter_model.bin"]
    ),
    st.text(alphabet="ab..\\//:\0~ é\x1b", min_size=1, max_size=12),
)
_types = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]
)


def zip_of(members: list[tuple[str, bytes, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data, kind in members:
            info = zipfile.ZipInfo(name)
            if kind == tarfile.SYMTYPE:
                info.external_attr = 0o120777 << 16
            packed.writestr(info, data)
    return out.getvalue()


def tar_of(members: list[tuple[str, bytes, bytes]], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as packed:  # type: ignore[call-overload]
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "../outside", len(data)
            if kind != tarfile.REGTYPE:
                info.size = 0
            packed.addfile(info, io.BytesIO(data))
    return out.getvalue()


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive, into = root / "upload", root / "in" / "to"
        archive.write_bytes(data)
        into.mkdir(parents=True)
        try:
            unpack(Upload(archive=archive), into, max_bytes=MAX)
            assert {CONFIG, WEIGHTS} == {path.name for path in into.iterdir()}
        except (UnsupportedUpload, UploadTooLarge) as error:
            assert error.message.isascii()
        except InvalidAdapter as error:
            assert all(problem.isascii() for problem in error.problems)
        assert sorted(root.iterdir()) == [root / "in", archive]
        assert list((root / "in").iterdir()) == [into]
        for path in into.rglob("*"):
            assert path.name in {CONFIG, WEIGHTS}
            assert path.is_file() and not path.is_symlink()
            assert path.stat().st_size <= 1 << 20


_members = st.lists(st.tuples(_names, st.binary(max_size=40), _types), max_size=6)


@settings(max_examples=250)
@given(_members, st.sampled_from(["zip", "w", "w:gz"]))
def test_any_members(members: list[tuple[str, bytes, bytes]], form: str) -> None:
    check(zip_of(members) if form == "zip" else tar_of(members, form))


_GOOD = [(f"a/{CONFIG}", b"{}", tarfile.REGTYPE), (f"a/{WEIGHTS}", b"w" * 900, tarfile.REGTYPE)]
_ARCHIVES = [zip_of(_GOOD), tar_of(_GOOD, "w"), tar_of(_GOOD, "w:gz")]


@settings(max_examples=300)
@given(
    st.sampled_from(_ARCHIVES),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0.3, 1.0),
)
def test_any_damage(whole: bytes, flips: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(whole)
    for where, value in flips:
        data[int(where * len(data))] = value
    check(bytes(data[: int(kept * len(data)) + 1]))


@settings(max_examples=200)
@given(
    st.sampled_from(
        [b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", bytes(257) + b"ustar\x0000"]
    ),
    st.binary(max_size=300),
)
def test_any_bytes(start: bytes, rest: bytes) -> None:
    check(start + rest)


_paths = st.lists(st.text(alphabet="abc.é 0", min_size=1, max_size=90), min_size=1, max_size=5).map(
    "/".join
)
_FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(_paths, st.binary(max_size=2000), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(_FORMATS),
    st.booleans(),
)
def test_what_a_tar_holds_is_what_tarfile_says(
    members: list[tuple[str, bytes, bool]], form: int, with_times: bool
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as packed:
        for path, data, is_folder in members:
            info = tarfile.TarInfo(path)
            info.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
            info.size = 0 if is_folder else len(data)
            info.mtime = 1.5 if with_times else 1
            try:
                packed.addfile(info, io.BytesIO(data))
            except ValueError:  # a path that this format cannot spell
                continue
    out.seek(0)
    with tarfile.open(fileobj=out) as whole:
        there = whole.getmembers()
        expected = [
            (one.name, one.isdir(), b"" if one.isdir() else whole.extractfile(one).read())  # type: ignore[union-attr]
            for one in there
        ]
    file = Bounded(out, None)
    if there:
        found = [
            (one.path.rstrip("/"), one.kind is MemberKind.FOLDER, ByteSpan(file, one).read(1 << 16))
            for one in list(tar_members(file))
        ]
        assert found == [(name.rstrip("/"), is_dir, data) for name, is_dir, data in expected]
