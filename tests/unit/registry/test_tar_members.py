"""Headers of tars: read as other programs write them, and no number in them believed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from lorry_adapters.errors import AdapterError
from support.packed import FILES, PACKS, WEIGHTS, refused, take


def test_a_tar_with_an_absurd_header(upload: Path, into: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    with upload.open("wb") as file:
        file.write(info.tobuf())
        file.seek(65 << 20, os.SEEK_CUR)
        file.write(b"\0")
    assert "absurd size" in refused(upload, into)


def test_a_tar_whose_member_has_a_negative_size(upload: Path, into: Path) -> None:
    # tarfile goes back and back: CVE-2025-8194.
    info = tarfile.TarInfo("x")
    info.pax_headers = {"size": "-1024"}
    upload.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    refused(upload, into, AdapterError)


def test_a_size_in_base_256(upload: Path, into: Path) -> None:
    """What GNU tar writes from 8 GiB on, and some others always."""
    data = bytearray(PACKS["tar"](upload, FILES.items()).read_bytes())
    for name, content in FILES.items():
        at = data.index(name.encode())
        data[at + 124 : at + 136] = b"\x80" + len(content).to_bytes(11, "big")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    upload.write_bytes(data)
    assert take(upload, into) == FILES


def test_a_damaged_header_between_two_members(upload: Path, into: Path) -> None:
    data = bytearray(PACKS["tar"](upload, FILES.items()).read_bytes())
    data[data.index(WEIGHTS.encode())] ^= 1
    upload.write_bytes(data)
    assert "checksum is wrong" in refused(upload, into)


def test_a_global_header_as_git_writes_it(upload: Path, into: Path) -> None:
    with tarfile.open(upload, "w:gz", pax_headers={"comment": "0" * 40}) as out:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    assert take(upload, into) == FILES
