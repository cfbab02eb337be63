"""The files of a content come back, and a folder of the server is a source."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from lorry_adapters.errors import (
    AdapterBroken,
    ForbiddenSource,
    UnknownAdapter,
    UnsupportedUpload,
)
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.registry import Registry
from support.adapter_files import save_adapter, upload
from support.registries import WEIGHTS, Files, Open, damage


def test_the_files_come_back_as_a_tar(registry: Registry, files: Files, tmp_path: Path) -> None:
    registry.add("legal", upload(files(1)))
    registry.put("legal", upload(files(2)))
    content = registry.content("legal", 1)
    registry.remove("legal")
    data = b"".join(content)
    assert len(data) == content.size
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        tar.extractall(tmp_path / "back", filter="data")
    assert digest_of(tmp_path / "back") == digest_of(files(1))
    with pytest.raises(UnknownAdapter):
        registry.content("legal")


def test_damaged_files_do_not_come_back(registry: Registry, files: Files) -> None:
    registry.add("legal", upload(files(1)))
    damage(registry, "legal", "one bit")
    with pytest.raises(AdapterBroken, match="upload it again"):
        registry.content("legal")


def test_a_folder_under_an_allowed_root(reopen: Open, files: Files, tmp_path: Path) -> None:
    source = files(1)
    registry = reopen(allowed_roots=(tmp_path / "files",))
    record, created = registry.add("legal", registry.upload_from(source), scale=2)
    assert created
    assert record.scale == 2
    assert record.current.digest == digest_of(source)
    assert (source / WEIGHTS).exists()


def test_what_lies_outside_the_roots_is_forbidden(
    reopen: Open, files: Files, tmp_path: Path
) -> None:
    outside = save_adapter(tmp_path / "outside", 1)
    root = tmp_path / "files"
    files(2)
    (root / "link").symlink_to(outside)
    (root / "linked files").mkdir()
    for path in outside.iterdir():
        (root / "linked files" / path.name).symlink_to(path)
    (root / "loop").symlink_to(root / "loop")
    registry = reopen(allowed_roots=(root,))
    for source in (
        outside,
        root / "link",
        root / "linked files",
        root / ".." / "outside",
        tmp_path / "files-not",
        Path("/etc"),
        Path("relative"),
        root / "loop",
        root / "nul\0",
    ):
        with pytest.raises(ForbiddenSource):
            registry.upload_from(source)
    with pytest.raises(ForbiddenSource, match=str(root)):
        registry.add("legal", registry.upload_from(outside))
    with pytest.raises(ForbiddenSource, match="allows no folders"):
        reopen().upload_from(files(2))


def test_links_inside_the_roots_are_fine(reopen: Open, files: Files, tmp_path: Path) -> None:
    snapshot = tmp_path / "files" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in files(1).iterdir():
        (snapshot / path.name).symlink_to(path)
    root = tmp_path / "root is a link"
    root.symlink_to(tmp_path / "files")
    registry = reopen(allowed_roots=(root,))
    registry.add("legal", registry.upload_from(root / "snapshots" / "main"))


def test_a_folder_without_the_files(reopen: Open, files: Files, tmp_path: Path) -> None:
    source = files(1)
    (source / WEIGHTS).unlink()
    (source / "adapter_model.bin").write_bytes(b"\x80")
    registry = reopen(allowed_roots=(tmp_path / "files",))
    with pytest.raises(UnsupportedUpload, match=r"no adapter_model\.safetensors; .*\.bin"):
        registry.add("legal", registry.upload_from(source))
    with pytest.raises(UnsupportedUpload, match="not a folder"):
        registry.add("legal", registry.upload_from(source / "nothing"))
