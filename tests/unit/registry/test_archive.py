"""Uploads from strangers: two files come out, or a named error; nothing else touches the disk."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from lorry_adapters.errors import InvalidAdapter, UnsupportedUpload, UploadTooLarge
from lorry_adapters.registry.archive import Upload, unpack
from support.packed import (
    CONFIG,
    FILES,
    HUB,
    MAX,
    PACKS,
    WEIGHTS,
    Members,
    Pack,
    refused,
    stored,
    take,
    zipped,
)

every_format = pytest.mark.parametrize("pack", PACKS.values(), ids=list(PACKS))


@every_format
@pytest.mark.parametrize("folder", ["", "./", "legal/", "a/b/./c/"])
def test_finds_the_adapter_at_any_depth(pack: Pack, folder: str, upload: Path, into: Path) -> None:
    members = [
        ("vocab.txt", b"{}"),
        (f"{folder}README.md", b"card"),
        (f"{folder}{WEIGHTS}", FILES[WEIGHTS]),
        (f"{folder}optimizer.pt", b"\x80\x04"),
        (f"{folder}adapter_model.bin", b"PK\x03\x04"),
        (f"{folder}{CONFIG}", FILES[CONFIG]),
        ("__MACOSX/._" + CONFIG, b"\0\5"),
        (f"{folder}evil.sh", b"#!"),
    ]
    assert take(pack(upload, members), into) == FILES


@every_format
def test_folders_may_be_listed(pack: Pack, upload: Path, into: Path) -> None:
    members = [("legal/", b""), *((f"legal/{name}", data) for name, data in FILES.items())]
    assert take(pack(upload, members), into) == FILES


def test_backslashes_part_a_path_too(upload: Path, into: Path) -> None:
    members = [(name.replace("/", "\\"), data) for name, data in nested("legal/v1")]
    assert take(zipped(upload, members), into) == FILES


def test_two_files(tmp_path: Path, into: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    unpack(Upload(config=tmp_path / CONFIG, weights=tmp_path / WEIGHTS), into, max_bytes=MAX)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == FILES


def nested(folder: str) -> list[tuple[str, bytes]]:
    return [(f"{folder}/{name}", data) for name, data in FILES.items()]


@every_format
@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../x", b""), *FILES.items()], "'../x': absolute paths"),
        ([*FILES.items(), ("a/../../x", b"")], "absolute paths and .."),
        ([*FILES.items(), (f"../{CONFIG}", b"{}")], "absolute paths and .."),
        ([*FILES.items(), ("..\\x", b"")], "absolute paths and .."),
        ([*FILES.items(), ("/etc/cron.d/x", b"")], "absolute paths"),
        ([*FILES.items(), ("C:\\x", b"")], "absolute paths"),
        ([*FILES.items(), ("\\\\host\\x", b"")], "absolute paths"),
        ([*nested("a"), *nested("b")], "2 files adapter_config.json (a/adapter_config.json, b/"),
        ([*FILES.items(), ("b/" + CONFIG, b"{}")], "2 files adapter_config.json"),
        ([*FILES.items(), ("b/" + WEIGHTS, b"")], "2 files adapter_model.safetensors"),
        ([("a/" + CONFIG, b"{}"), ("b/" + WEIGHTS, b"")], "are in different folders"),
        ([(CONFIG, b"{}"), ("adapter_model.bin", b"PK")], "'adapter_model.bin' is a pickle"),
        ([(CONFIG, b"{}"), ("pytorch_adapter.bin", b"")], "'pytorch_adapter.bin' is a pickle"),
        ([*FILES.items(), (HUB, b"")], f"2 files {WEIGHTS} (adapter_model"),
        ([(CONFIG, b"{}"), (HUB, b""), ("model_head.safetensors", b"")], "with_head=False"),
        ([(f"f{i}", b"") for i in range(10_001)], "more than 10000 members"),
    ],
)
def test_refused_archives(
    pack: Pack, members: Members, said: str, upload: Path, into: Path
) -> None:
    assert said in refused(pack(upload, members), into)
    assert not list(into.iterdir())


@every_format
def test_adapterhubs_weights_are_kept_under_our_name(pack: Pack, upload: Path, into: Path) -> None:
    members = [("a/" + CONFIG, FILES[CONFIG]), ("a/" + HUB, FILES[WEIGHTS])]
    assert take(pack(upload, members), into) == FILES


@every_format
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(pack: Pack, upload: Path, into: Path) -> None:
    twice = [*FILES.items(), ("x", b"1"), ("x", b"2")]
    assert "the member 'x' twice" in refused(pack(upload, twice), into)
    same_path = [*FILES.items(), (f"./{CONFIG}", b"{}")]
    assert "twice" in refused(pack(upload, same_path), into)


@every_format
@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a/", b"")], ["adapter_config.json is missing", "safetensors is missing", "no files"]),
        (
            [(CONFIG, b"{}"), ("training_args.bin", b"")],
            ["safetensors is missing", "training_args"],
        ),
        ([(WEIGHTS, b""), ("a.txt", b"")], ["adapter_config.json is missing", "a.txt"]),
        ([("model.safetensors", b"")], ["adapter_config.json is missing", "model.safetensors"]),
    ],
)
def test_missing_files(
    pack: Pack, members: Members, said: list[str], upload: Path, into: Path
) -> None:
    told = refused(pack(upload, members), into, InvalidAdapter)
    assert all(text in told for text in said)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("name", [CONFIG, "elsewhere", "a/README.md"])
def test_links_and_devices_in_a_tar(kind: bytes, name: str, upload: Path, into: Path) -> None:
    with tarfile.open(upload, "w") as out:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
    assert "link or a device" in refused(upload, into)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(kind: int, upload: Path, into: Path) -> None:
    with zipfile.ZipFile(upload, "w") as out:
        info = zipfile.ZipInfo(WEIGHTS)
        info.external_attr = (kind | 0o777) << 16
        out.writestr(info, "/etc/passwd")
    assert "link or a device" in refused(upload, into)


def test_a_linked_parent_cannot_be_written_through(upload: Path, into: Path) -> None:
    with tarfile.open(upload, "w") as out:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = tarfile.SYMTYPE, str(into.parent)
        out.addfile(info)
        info = tarfile.TarInfo(f"a/{CONFIG}")
        out.addfile(info)
    refused(upload, into)


@every_format
def test_bombs_stop_at_the_limit(pack: Pack, upload: Path, into: Path) -> None:
    members = [(CONFIG, b"{}"), (WEIGHTS, bytes(MAX + 1))]
    assert "larger than" in refused(pack(upload, members), into, UploadTooLarge)
    assert (into / WEIGHTS).stat().st_size <= MAX


@every_format
def test_a_config_has_a_limit_of_its_own(pack: Pack, upload: Path, into: Path) -> None:
    members = [(CONFIG, b" " * (2 << 20)), (WEIGHTS, b"")]
    refused(pack(upload, members), into, UploadTooLarge, max_bytes=1 << 30)


def test_a_bomb_beside_the_adapter(upload: Path, into: Path) -> None:
    members = [*FILES.items(), ("bomb", bytes(64 << 20))]
    assert "unpacks to more" in refused(PACKS["tar.gz"](upload, members), into, UploadTooLarge)
    # Never unpacked, so it costs nothing.
    assert take(zipped(upload, members), into) == FILES


def test_a_declared_size_is_not_believed(upload: Path, into: Path) -> None:
    zipped(upload, [(CONFIG, b"{}"), (WEIGHTS, bytes(4 * MAX))])
    data = bytearray(upload.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.rindex(signature)
        struct.pack_into("<I", data, at + offset, 100)
    upload.write_bytes(data)
    assert "damaged" in refused(upload, into)


@every_format
def test_truncated_anywhere(pack: Pack, upload: Path, into: Path, tmp_path: Path) -> None:
    random = os.urandom(3000)
    whole = pack(upload, [(CONFIG, b"{}"), (WEIGHTS, random)]).read_bytes()
    for length in [*range(0, 600, 37), *range(600, len(whole) - 1, 211)]:
        upload.write_bytes(whole[:length])
        folder = tmp_path / str(length)
        folder.mkdir()
        try:
            unpack(Upload(archive=upload), folder, max_bytes=MAX)
        except (UnsupportedUpload, InvalidAdapter):
            continue
        # A tar may lack its closing zeros; what is in it is whole.
        assert (folder / WEIGHTS).read_bytes() == random
        assert length > len(random)


@pytest.mark.parametrize("name", ["zip", "stored zip", "tar.gz"])
def test_a_flipped_bit_is_noticed(name: str, upload: Path, into: Path) -> None:
    data = bytearray(PACKS[name](upload, FILES.items()).read_bytes())
    data[len(data) // 2] ^= 0x10
    upload.write_bytes(data)
    assert "truncated or damaged" in refused(upload, into)


def test_an_encrypted_zip(upload: Path, into: Path) -> None:
    data = bytearray(stored(upload, FILES.items()).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature)
        data[at + offset] |= 1
    upload.write_bytes(data)
    assert "is encrypted: pack it without" in refused(upload, into)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(method: int, upload: Path, into: Path) -> None:
    assert "deflate" in refused(zipped(upload, FILES.items(), method), into)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"hello" * 200, "no archive"),
        (b"PK", "no archive"),
        (b"PK\x03\x04", "damaged"),
        (b"PK\x03\x04" + bytes(500), "damaged"),
        (b"PK\x05\x06" + b"\xff" * 18, "damaged"),
        (b"\x1f\x8b", "damaged"),
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 100_000, "damaged"),
        (gzip.compress(b"hello" * 1000, mtime=0), "damaged"),
        (gzip.compress(b"", mtime=0), "damaged"),
        (bytes(10_240), "no archive"),  # what `tar` makes of nothing
        (bytes(257) + b"ustar" + bytes(300), "damaged"),
        (b"\xfd7zXZ\0" + bytes(100), "an xz archive"),
        (b"BZh9" + bytes(100), "a bzip2 archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive"),
        (b"Rar!\x1a\x07" + bytes(100), "a rar archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "a zstd archive"),
        ((9).to_bytes(8, "little") + b'{"a":{}} ', "a safetensors file without its"),
        (pickle.dumps({"a": 1}), "a pickle"),
        (b'{"peft_type": "LORA"}', "no archive"),
    ],
)
def test_no_archive(data: bytes, said: str, upload: Path, into: Path) -> None:
    upload.write_bytes(data)
    assert said in refused(upload, into)


def test_a_torch_file_is_a_zip_and_a_pickle(tmp_path: Path, upload: Path, into: Path) -> None:
    torch.save({"a": torch.ones(2)}, upload)
    assert "is a pickle" in refused(upload, into)
    (tmp_path / CONFIG).write_bytes(b"{}")
    with pytest.raises(UnsupportedUpload, match="is a pickle"):
        unpack(Upload(config=tmp_path / CONFIG, weights=upload), into, max_bytes=MAX)


def test_two_files_have_limits_too(tmp_path: Path, into: Path) -> None:
    (tmp_path / CONFIG).write_bytes(b"{}")
    (tmp_path / WEIGHTS).write_bytes(bytes(MAX + 1))
    with pytest.raises(UploadTooLarge):
        unpack(Upload(config=tmp_path / CONFIG, weights=tmp_path / WEIGHTS), into, max_bytes=MAX)


def test_a_zip_with_an_absurd_directory(upload: Path, into: Path) -> None:
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 64 << 20, 4, 0)
    with upload.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(64 << 20, os.SEEK_CUR)
        file.write(end)
    assert "absurd size" in refused(upload, into)


def test_a_gzip_of_many_parts(upload: Path, into: Path) -> None:
    upload.write_bytes(PACKS["tar.gz"](upload, FILES.items()).read_bytes() + gzip.compress(b"x"))
    assert "more data after" in refused(upload, into)


def test_a_full_disk_is_the_disks_fault(
    upload: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/dev/full` takes the file's place: the error must arrive as the OSError it is."""
    zipped(upload, FILES.items())
    real = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        if self.name == WEIGHTS and mode == "xb":
            return open("/dev/full", "wb", buffering=0)
        return real(self, mode, *args, **kwargs)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError) as caught:
        unpack(Upload(archive=upload), into, max_bytes=MAX)
    assert caught.value.errno == errno.ENOSPC
