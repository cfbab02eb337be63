"""Archives that lie about what they hold: refused by what is bounded, not by a clock.

What a refusal may cost is counted in bytes held and bytes unpacked.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from lorry_adapters.errors import InvalidAdapter, UnsupportedUpload, UploadTooLarge
from lorry_adapters.registry import archive, streams
from lorry_adapters.registry.archive import Upload, unpack
from support.bad_uploads import CONFIG, WEIGHTS
from support.hostile_archives import hostile_archives

MAX = 4 << 20
HOSTILE = hostile_archives({CONFIG: b"{}", WEIGHTS: b"w" * 900}, mebibytes=64)
STATUS = {413: UploadTooLarge, 415: UnsupportedUpload, 422: InvalidAdapter}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = 0
    whole = streams.Gunzip.read

    def counted(self: streams.Gunzip, size: int) -> bytes:
        nonlocal unpacked
        data = whole(self, size)
        unpacked += len(data)
        return data

    monkeypatch.setattr(streams.Gunzip, "read", counted)
    hostile = HOSTILE[name]
    # Tracing is slow where there are many small things.
    traced = "members" not in name and "fields" not in name
    upload, into = tmp_path / "upload", tmp_path / "into"
    upload.write_bytes(hostile.make())
    into.mkdir()
    if traced:
        tracemalloc.start()
    try:
        with pytest.raises(STATUS[hostile.status]) as caught:
            unpack(Upload(archive=upload), into, max_bytes=MAX)
        _, peak = tracemalloc.get_traced_memory()  # 0 where nothing is traced
    finally:
        tracemalloc.stop()
    said = "; ".join(getattr(caught.value, "problems", (caught.value.message,)))
    assert hostile.says in said.lower()
    assert said.isascii() and len(said) < 1000
    assert peak < 100 << 20
    assert unpacked <= 2 * MAX + archive._BESIDES + streams.MAX_READ
    assert sum(path.stat().st_size for path in into.iterdir()) <= MAX + 2
