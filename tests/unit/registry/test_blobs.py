import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorry_adapters.errors import StorageFull
from lorry_adapters.registry.blobs import Blobs, digest_of, size_of, storage_full_named

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def fill(folder: Path, text: str = "weights") -> str:
    (folder / CONFIG).write_text("{}")
    (folder / WEIGHTS).write_text(text)
    return digest_of(folder)


def publish(blobs: Blobs, text: str = "weights") -> str:
    with blobs.staging() as folder:
        digest = fill(folder, text)
        blobs.seal(folder)
        blobs.publish(folder, digest)
    return digest


def left_in(home: Path) -> set[str]:
    return {path.name for part in ("blobs", "staging") for path in (home / part).iterdir()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def blobs(home: Path) -> Iterator[Blobs]:
    blobs = Blobs(home)
    yield blobs
    blobs.close()


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    fill(tmp_path, "abc")
    lines = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (CONFIG, WEIGHTS)
    )
    assert digest_of(tmp_path) == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def test_the_digest_tells_which_file_holds_what(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("a")
    (tmp_path / WEIGHTS).write_text("b")
    one = digest_of(tmp_path)
    (tmp_path / CONFIG).write_text("b")
    (tmp_path / WEIGHTS).write_text("a")
    assert digest_of(tmp_path) != one
    (tmp_path / "README.md").write_text("not part of it")
    with_readme = digest_of(tmp_path)
    (tmp_path / "README.md").unlink()
    assert digest_of(tmp_path) == with_readme


def test_a_published_folder_holds_the_two_files_and_nothing_else(blobs: Blobs, home: Path) -> None:
    with blobs.staging() as folder:
        digest = fill(folder)
        (folder / "README.md").write_text("a card")
        (folder / "more").mkdir()
        (folder / "more" / "evil.py").write_text("")
        (folder / "link").symlink_to("/etc/passwd")
        blobs.seal(folder)
        assert blobs.publish(folder, digest)
    published = blobs.folder(digest)
    assert published == home / "blobs" / digest.replace(":", "-")
    assert {path.name for path in published.iterdir()} == {CONFIG, WEIGHTS}
    assert blobs.intact(digest)
    assert size_of(published) == len("{}weights")
    assert left_in(home) == {published.name}
    assert Path("/etc/passwd").exists()


def test_the_same_content_again(blobs: Blobs, home: Path) -> None:
    digest = publish(blobs)
    before = blobs.folder(digest).stat().st_ino
    assert publish(blobs) == digest
    assert blobs.folder(digest).stat().st_ino == before
    assert left_in(home) == {blobs.folder(digest).name}


@pytest.mark.parametrize("damage", ["changed", "missing", "empty"])
def test_a_damaged_blob_is_replaced(blobs: Blobs, damage: str) -> None:
    digest = publish(blobs)
    file = blobs.folder(digest) / WEIGHTS
    if damage == "changed":
        file.write_text("weightz")
    elif damage == "missing":
        file.unlink()
    else:
        file.write_text("")
    assert not blobs.intact(digest)
    publish(blobs)
    assert blobs.intact(digest)


def test_an_abandoned_upload_leaves_nothing(blobs: Blobs, home: Path) -> None:
    with pytest.raises(ConnectionError), blobs.staging() as folder:
        fill(folder)
        raise ConnectionError("client gone")
    assert left_in(home) == set()


def test_retired_is_gone_at_once_and_its_bytes_soon(blobs: Blobs, home: Path) -> None:
    digest = publish(blobs)
    blobs.retire(digest)
    assert not blobs.folder(digest).exists()
    blobs.retire(digest)
    blobs.close()
    assert left_in(home) == set()


def test_start_up_removes_what_was_on_its_way(home: Path) -> None:
    blobs = Blobs(home)
    digest = publish(blobs, "one")
    (home / "staging" / "half").mkdir()
    (home / "staging" / "half" / "upload.zip").write_text("")
    (home / "staging" / "file").write_text("")
    (home / "blobs" / "notes.txt").write_text("the operator's")
    blobs.close()

    blobs = Blobs(home)
    blobs.clean()
    assert blobs.digests() == {digest}
    assert left_in(home) == {blobs.folder(digest).name, "notes.txt"}
    blobs.delete(digest)
    assert left_in(home) == {"notes.txt"}
    blobs.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_no_room(
    blobs: Blobs, home: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def full(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageFull, match="no room"):
            publish(blobs)
    assert left_in(home) == set()
    publish(blobs)


def test_other_disk_errors_are_not_called_full(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), storage_full_named(tmp_path):
        raise PermissionError(errno.EACCES, "no")
