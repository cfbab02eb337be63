"""The registry with real files and a real catalogue; only the base model is a layout."""

import math
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.errors import (
    AdapterBroken,
    AdapterConflict,
    AdapterDisabled,
    DigestMismatch,
    ForbiddenSource,
    HomeUnusable,
    InvalidAdapter,
    InvalidAdapterName,
    InvalidScale,
    InvalidSelection,
    StorageFull,
    UnknownAdapter,
    UnsupportedUpload,
)
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.registry import registry as registry_module
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.record import AdapterChoice, Lease
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload

WEIGHTS = "adapter_model.safetensors"

Open = Callable[..., Registry]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def reopen(home: Path) -> Iterator[Open]:
    """Opens the registry of `home`, closing the one before."""
    opened: list[Registry] = []

    def open_it(base: BaseLayout | None = None, **options: Any) -> Registry:
        if opened:
            opened.pop().close()
        given = {"max_rank": 8, "max_upload": 1 << 20, "max_host_bytes": 1 << 20} | options
        opened.append(Registry(home, base or layout(), **given))
        return opened[-1]

    yield open_it
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(reopen: Open) -> Registry:
    return reopen(reserved_names=frozenset({"smol"}))


@pytest.fixture
def files(tmp_path: Path) -> Callable[[int], Path]:
    return lambda seed: save_adapter(tmp_path / "files" / str(seed), seed)


Files = Callable[[int], Path]


def acquire(registry: Registry, *names: str) -> Lease:
    return registry.acquire([AdapterChoice(name) for name in names])


def blobs(home: Path) -> set[str]:
    return {path.name.replace("-", ":") for path in (home / "blobs").iterdir()}


# Adding


def test_added_is_listed_and_can_be_used(registry: Registry, files: Files, home: Path) -> None:
    record, created = registry.add("legal", upload(files(1)), scale=0.5, description="contracts")
    assert created
    assert registry.get("legal") == record
    assert registry.records() == (record,)
    assert (record.scale, record.enabled, record.pinned) == (0.5, True, False)
    version = record.current
    assert record.versions == (version,)
    assert (version.version, version.rank, version.peft_type) == (1, 2, "LORA")
    assert version.target_modules == ("down_proj", "q_proj")
    assert version.digest == digest_of(files(1))
    assert blobs(home) == {version.digest}

    lease = acquire(registry, "legal")
    (ref,) = lease.refs
    assert (ref.name, ref.version, ref.digest, ref.scale) == ("legal", 1, version.digest, 0.5)
    weights = registry.weights(ref.digest)
    assert weights.digest == ref.digest
    assert len(weights.modules) == 2
    assert registry.in_host_cache(ref.digest)
    assert registry.weights(ref.digest) is weights
    lease.release()
    assert registry.open_leases() == 0


def test_the_source_files_are_left_alone(registry: Registry, files: Files) -> None:
    before = digest_of(files(1))
    registry.add("legal", upload(files(1)))
    assert digest_of(files(1)) == before


def test_the_same_name_and_content_is_nothing_new(registry: Registry, files: Files) -> None:
    record, _ = registry.add("legal", upload(files(1)))
    again, created = registry.add("legal", upload(files(1)), scale=3.0, enabled=False)
    assert not created
    assert again == record == registry.get("legal")


def test_other_content_needs_replace(registry: Registry, files: Files, home: Path) -> None:
    first, _ = registry.add("legal", upload(files(1)), scale=0.5, pinned=True)
    with pytest.raises(AdapterConflict, match="other content"):
        registry.add("legal", upload(files(2)))
    assert registry.get("legal") == first
    assert blobs(home) == {first.current.digest}

    second, created = registry.add("legal", upload(files(2)), replace=True, description="new")
    assert created
    assert second.current.version == 2
    assert second.versions == (first.current, second.current)
    assert (second.scale, second.pinned, second.description) == (0.5, True, "new")
    assert second.created_at == first.created_at
    with pytest.raises(AdapterConflict, match="as version 1"):
        registry.add("legal", upload(files(1)))


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "../up", ".hidden", "-x", "_x", "a b", "a\n", "a@2", "é", "a" * 129, "smol", "a\0"],
)
def test_bad_names(registry: Registry, files: Files, name: str) -> None:
    with pytest.raises(InvalidAdapterName):
        registry.add(name, upload(files(1)))
    assert registry.records() == ()


@pytest.mark.parametrize("name", ["a", "9", "A.b_c-d", "a" * 128, "smol2", "Smol"])
def test_good_names(registry: Registry, files: Files, name: str) -> None:
    registry.add(name, upload(files(1)))
    assert acquire(registry, name).refs[0].name == name


BAD_SCALES: list[Any] = [math.nan, math.inf, -math.inf, 17, -16.001, 10**400, True, "1", [1.0]]


@pytest.mark.parametrize("scale", BAD_SCALES)
def test_bad_scales(registry: Registry, files: Files, scale: Any) -> None:
    with pytest.raises(InvalidScale):
        registry.add("legal", upload(files(1)), scale=scale)
    assert registry.records() == ()
    registry.add("legal", upload(files(1)))
    with pytest.raises(InvalidScale):
        registry.patch("legal", scale=scale)
    with pytest.raises(InvalidScale, match="'legal'"):
        registry.acquire([AdapterChoice("legal", scale=scale)])
    assert registry.get("legal").scale == 1.0
    assert registry.open_leases() == 0


@pytest.mark.parametrize("scale", [0, -16, 16, 0.5])
def test_good_scales(registry: Registry, files: Files, scale: float) -> None:
    registry.add("legal", upload(files(1)))
    lease = registry.acquire([AdapterChoice("legal", scale=scale)])
    assert lease.refs[0].scale == scale
    assert type(lease.refs[0].scale) is float
    assert registry.patch("legal", scale=scale).scale == scale


def test_an_adapter_that_does_not_fit_leaves_nothing(
    registry: Registry, tmp_path: Path, home: Path
) -> None:
    wrong = save_adapter(tmp_path / "wrong", 1, hidden=7)
    with pytest.raises(InvalidAdapter):
        registry.add("legal", upload(wrong))
    with pytest.raises(InvalidAdapter, match="rank"):
        registry.add("legal", upload(save_adapter(tmp_path / "high", 1, rank=9)))
    assert registry.records() == ()
    assert blobs(home) == set()
    assert list((home / "staging").iterdir()) == []


def test_staging_is_where_uploads_come_in(registry: Registry, home: Path) -> None:
    with registry.staging() as folder:
        assert folder.parent == home / "staging"
        (folder / "upload.zip").write_bytes(b"half")
    assert not folder.exists()


def test_no_room_for_the_catalogue_leaves_nothing(
    registry: Registry, files: Files, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    registry._catalog._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageFull):
        registry.add("legal", upload(files(1)), description="x" * 100_000)
    assert registry.records() == ()
    assert blobs(home) == set()
    registry._catalog._db.execute("PRAGMA max_page_count = 100000")
    registry.add("legal", upload(files(1)))


# Versions


def test_put_makes_the_next_version(registry: Registry, files: Files) -> None:
    with pytest.raises(UnknownAdapter):
        registry.put("legal", upload(files(1)))
    first, _ = registry.add("legal", upload(files(1)))
    second = registry.put("legal", upload(files(2)))
    assert [v.version for v in second.versions] == [1, 2]
    assert second.current.version == 2
    assert registry.put("legal", upload(files(2))) == second
    third = registry.put("legal", upload(files(1)))
    assert (third.current.version, third.current.digest) == (3, first.current.digest)


def test_compare_and_swap(registry: Registry, files: Files) -> None:
    first, _ = registry.add("legal", upload(files(1)))
    second = registry.put("legal", upload(files(2)), if_match=first.current.digest)
    with pytest.raises(DigestMismatch, match="version 2"):
        registry.put("legal", upload(files(3)), if_match=first.current.digest)
    with pytest.raises(DigestMismatch):
        registry.patch("legal", scale=2, if_match=first.current.digest)
    assert registry.get("legal") == second


def test_rolling_back_and_forward(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("legal", upload(files(1)))
    registry.put("legal", upload(files(2)))
    back = registry.patch("legal", version=1)
    assert back.current.version == 1
    assert acquire(registry, "legal").refs[0].version == 1
    assert registry.acquire([AdapterChoice("legal", version=2)]).refs[0].version == 2
    with pytest.raises(UnknownAdapter, match=r"no version 3; it has 1, 2"):
        registry.patch("legal", version=3)
    with pytest.raises(UnknownAdapter, match="no version 3"):
        registry.acquire([AdapterChoice("legal", version=3)])
    assert reopen().get("legal").current.version == 1


def test_removing_a_version(registry: Registry, files: Files, home: Path, reopen: Open) -> None:
    first, _ = registry.add("legal", upload(files(1)))
    second = registry.put("legal", upload(files(2)))
    with pytest.raises(AdapterConflict, match="version 2 of adapter 'legal' is current"):
        registry.remove("legal", version=2)
    with pytest.raises(UnknownAdapter):
        registry.remove("legal", version=7)
    registry.remove("legal", version=1)
    assert registry.get("legal").versions == (second.current,)
    assert blobs(home) == {second.current.digest}

    registry.put("legal", upload(files(1)))
    registry.patch("legal", version=2)
    registry.remove("legal", version=3)
    registry = reopen()
    assert registry.put("legal", upload(files(1))).current.version == 4
    registry.remove("legal", version=2)
    registry.remove("legal", version=4)
    with pytest.raises(UnknownAdapter):
        registry.get("legal")
    assert blobs(home) == set()
    assert registry.add("legal", upload(files(1)))[0].current.version == 1
    assert first.current.version == 1


# Acquiring


def test_several_at_once_or_none(registry: Registry, files: Files) -> None:
    for seed in (1, 2):
        registry.add(f"a{seed}", upload(files(seed)), scale=seed)
    lease = registry.acquire([AdapterChoice("a2", scale=-1.5), AdapterChoice("a1")])
    assert [(ref.name, ref.scale) for ref in lease.refs] == [("a2", -1.5), ("a1", 1.0)]
    lease.release()
    with pytest.raises(UnknownAdapter, match="'a3'"):
        acquire(registry, "a1", "a2", "a3")
    assert registry.open_leases() == 0
    # Nothing was counted on a1 and a2: they go at once.
    gone: list[str] = []
    registry.subscribe(gone.append)
    registry.remove("a1")
    registry.remove("a2")
    assert len(gone) == 2


def test_no_adapter_is_a_lease_too(registry: Registry) -> None:
    lease = registry.acquire([])
    assert lease.refs == ()
    lease.release()


def test_too_many_or_the_same_twice(registry: Registry, files: Files) -> None:
    for name in ("one", "two"):
        registry.add(name, upload(files(1)))
    with pytest.raises(InvalidSelection, match="9 adapters"):
        acquire(registry, *["one"] * 9)
    with pytest.raises(InvalidSelection, match="'one' is given twice"):
        acquire(registry, "one", "one")
    with pytest.raises(InvalidSelection, match="'one' and 'two' have the same content"):
        acquire(registry, "one", "two")
    assert registry.open_leases() == 0


def test_disabled(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("legal", upload(files(1)))
    running = acquire(registry, "legal")
    registry.patch("legal", enabled=False)
    with pytest.raises(AdapterDisabled, match="lorry adapters enable legal"):
        acquire(registry, "legal")
    assert registry.weights(running.refs[0].digest)
    running.release()
    registry = reopen()
    with pytest.raises(AdapterDisabled):
        acquire(registry, "legal")
    registry.patch("legal", enabled=True)
    acquire(registry, "legal")


def test_requests_keep_what_they_started_with(registry: Registry, files: Files) -> None:
    first, _ = registry.add("legal", upload(files(1)), scale=2.0)
    lease = acquire(registry, "legal")
    registry.patch("legal", scale=-1)
    registry.put("legal", upload(files(2)))
    assert lease.refs[0].scale == 2.0
    assert registry.weights(lease.refs[0].digest).digest == first.current.digest


# Removing


def test_removal_waits_for_the_last_lease(registry: Registry, files: Files, home: Path) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    record, _ = registry.add("legal", upload(files(1)))
    digest = record.current.digest
    leases = [acquire(registry, "legal") for _ in range(2)]
    registry.weights(digest)
    registry.remove("legal")
    with pytest.raises(UnknownAdapter):
        acquire(registry, "legal")
    with pytest.raises(UnknownAdapter):
        registry.remove("legal")
    leases[0].release()
    leases[0].release()
    assert gone == []
    assert blobs(home) == {digest}
    assert registry.weights(digest).digest == digest
    leases[1].release()
    assert gone == [digest]
    assert blobs(home) == set()
    assert not registry.in_host_cache(digest)
    with pytest.raises(UnknownAdapter):
        registry.weights(digest)


def test_content_under_two_names_goes_with_the_second(
    registry: Registry, files: Files, home: Path
) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    record, created = registry.add("one", upload(files(1)))
    assert registry.add("two", upload(files(1)))[1]
    registry.remove("one")
    assert gone == []
    assert registry.weights(record.current.digest)
    registry.remove("two")
    assert gone == [record.current.digest]
    assert blobs(home) == set()
    assert created


def test_added_again_while_the_old_one_drains(registry: Registry, files: Files, home: Path) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    digest = registry.add("legal", upload(files(1)))[0].current.digest
    old = acquire(registry, "legal")
    registry.remove("legal")
    registry.add("other", upload(files(1)))
    old.release()
    assert gone == []
    assert blobs(home) == {digest}
    lease = acquire(registry, "other")
    assert registry.weights(digest)
    registry.remove("other")
    lease.release()
    assert gone == [digest]


def test_a_lease_after_closing_frees_nothing(
    registry: Registry, files: Files, home: Path, reopen: Open
) -> None:
    digest = registry.add("legal", upload(files(1)))[0].current.digest
    lease = acquire(registry, "legal")
    registry.remove("legal")
    registry.close()
    reopen().add("legal", upload(files(1)))
    lease.release()
    assert blobs(home) == {digest}


# Restarting


def test_everything_survives_a_restart(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("a", upload(files(1)), scale=0.3, enabled=False, description="ä")
    registry.add("b", upload(files(2)), pinned=True)
    registry.put("b", upload(files(3)))
    before = registry.records()
    registry = reopen()
    assert registry.records() == before
    lease = acquire(registry, "b")
    assert registry.weights(lease.refs[0].digest).digest == digest_of(files(3))


def test_two_servers_cannot_share_a_home(registry: Registry, home: Path) -> None:
    with pytest.raises(HomeUnusable, match="another server uses"):
        Registry(home, layout(), max_rank=8, max_upload=1, max_host_bytes=1)
    assert registry.records() == ()


def test_a_home_that_is_a_file(home: Path) -> None:
    home.write_text("")
    with pytest.raises(HomeUnusable, match="home"):
        Registry(home, layout(), max_rank=8, max_upload=1, max_host_bytes=1)


def test_a_refused_catalogue_lets_go_of_the_home(registry: Registry, home: Path) -> None:
    registry.close()
    for _ in range(2):
        with sqlite3.connect(home / "catalog.sqlite3") as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(HomeUnusable, match="newer Lorry"):
            Registry(home, layout(), max_rank=8, max_upload=1, max_host_bytes=1)


def damage(registry: Registry, name: str, how: str) -> None:
    folder = registry.folder(registry.get(name).current.digest)
    if how == "folder gone":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif how == "file gone":
        (folder / WEIGHTS).unlink()
    elif how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])
    else:
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize("how", ["folder gone", "file gone", "truncated", "one bit"])
@pytest.mark.parametrize("restart", [True, False])
def test_damaged_files_are_broken_until_uploaded_again(
    registry: Registry, files: Files, reopen: Open, how: str, restart: bool
) -> None:
    for name, seed in (("bad", 1), ("good", 2)):
        registry.add(name, upload(files(seed)))
    record = registry.get("bad")
    damage(registry, "bad", how)
    if restart:
        registry = reopen()
    assert [r.name for r in registry.records()] == ["bad", "good"]

    def use(name: str) -> None:
        lease = acquire(registry, name)
        try:
            registry.weights(lease.refs[0].digest)
        finally:
            lease.release()

    for _ in range(2):
        with pytest.raises(AdapterBroken, match=r"'bad' \(version 1\).*upload it again"):
            use("bad")
    # Found once, it is refused before a request is accepted.
    with pytest.raises(AdapterBroken):
        acquire(registry, "bad")
    use("good")

    assert registry.add("bad", upload(files(1))) == (record, False)
    use("bad")
    registry.remove("bad")
    use("good")


def test_a_disk_error_at_load_is_not_remembered(
    registry: Registry, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.add("legal", upload(files(1)))[0].current.digest

    def fail(*args: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "load", fail)
        with pytest.raises(AdapterBroken, match="Too many open files"):
            registry.weights(digest)
    lease = acquire(registry, "legal")
    assert registry.weights(digest)
    lease.release()


def test_another_base_breaks_what_does_not_fit_and_nothing_else(
    registry: Registry, files: Files, reopen: Open
) -> None:
    registry.add("legal", upload(files(1)))
    registry = reopen(layout("big", hidden=12))
    assert registry.get("legal").name == "legal"
    with pytest.raises(AdapterBroken, match="does not fit the base model big"):
        acquire(registry, "legal")
    with pytest.raises(InvalidAdapter):
        registry.add("legal", upload(files(1)))
    registry = reopen(layout("same shapes"))
    lease = acquire(registry, "legal")
    assert registry.weights(lease.refs[0].digest)


def test_another_base_that_fits_is_remembered(
    registry: Registry, files: Files, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from lorry_adapters.registry import survey

    registry.add("legal", upload(files(1)))
    inspected: list[Path] = []
    inspect = survey.inspect

    def note(folder: Path, *rest: Any) -> Any:
        inspected.append(folder)
        return inspect(folder, *rest)

    monkeypatch.setattr(survey, "inspect", note)
    reopen()
    assert inspected == []
    deeper = replace(layout(), num_layers=2)
    reopen(deeper)
    assert len(inspected) == 1
    acquire(reopen(deeper), "legal")
    assert len(inspected) == 1


def test_a_lower_rank_limit_breaks_what_is_above(
    registry: Registry, files: Files, reopen: Open
) -> None:
    registry.add("legal", upload(files(1)))
    with pytest.raises(AdapterBroken, match="rank 2 is above this server's limit of 1"):
        acquire(reopen(max_rank=1), "legal")
    acquire(reopen(max_rank=2), "legal")


def test_a_stored_name_that_the_base_took(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("legal", upload(files(1)))
    registry = reopen(reserved_names=frozenset({"legal"}))
    with pytest.raises(AdapterBroken, match="base model's name"):
        acquire(registry, "legal")
    registry.remove("legal")


def test_rolling_to_a_broken_version_is_refused(
    registry: Registry, files: Files, reopen: Open
) -> None:
    registry.add("legal", upload(files(1)))
    damage(registry, "legal", "folder gone")
    registry.put("legal", upload(files(2)))
    registry = reopen()
    with pytest.raises(AdapterBroken, match="cannot go to version 1"):
        registry.patch("legal", version=1)
    assert registry.get("legal").current.version == 2


# Host cache


def test_pins_follow_the_current_version(registry: Registry, files: Files, reopen: Open) -> None:
    registry = reopen(max_host_bytes=1)
    registry.add("legal", upload(files(1)), pinned=True)
    first = registry.get("legal").current.digest
    registry.weights(first)
    assert registry.in_host_cache(first)
    second = registry.put("legal", upload(files(2))).current.digest
    registry.weights(second)
    assert (registry.in_host_cache(first), registry.in_host_cache(second)) == (False, True)
    registry.patch("legal", pinned=False)
    assert not registry.in_host_cache(second)
    stats = registry.host_cache_stats()
    assert (stats.entries, stats.bytes, stats.capacity_bytes) == (0, 0, 1)
    registry.patch("legal", pinned=True)
    registry = reopen(max_host_bytes=1)
    registry.weights(second)
    assert registry.in_host_cache(second)


def test_a_pin_goes_with_its_adapter(reopen: Open, files: Files) -> None:
    registry = reopen(max_host_bytes=1)
    digest = registry.add("pinned", upload(files(1)), pinned=True)[0].current.digest
    registry.add("plain", upload(files(1)))
    registry.weights(digest)
    assert registry.in_host_cache(digest)
    registry.remove("pinned")
    assert not registry.in_host_cache(digest)


# Content and sources


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
    record, created = registry.add_folder("legal", source, scale=2)
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
            registry.add_folder("legal", source)
    with pytest.raises(ForbiddenSource, match=str(root)):
        registry.add_folder("legal", outside)
    with pytest.raises(ForbiddenSource, match="allows no folders"):
        reopen().add_folder("legal", files(2))


def test_links_inside_the_roots_are_fine(reopen: Open, files: Files, tmp_path: Path) -> None:
    snapshot = tmp_path / "files" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in files(1).iterdir():
        (snapshot / path.name).symlink_to(path)
    root = tmp_path / "root is a link"
    root.symlink_to(tmp_path / "files")
    registry = reopen(allowed_roots=(root,))
    registry.add_folder("legal", root / "snapshots" / "main")


def test_a_folder_without_the_files(reopen: Open, files: Files, tmp_path: Path) -> None:
    source = files(1)
    (source / WEIGHTS).unlink()
    (source / "adapter_model.bin").write_bytes(b"\x80")
    registry = reopen(allowed_roots=(tmp_path / "files",))
    with pytest.raises(UnsupportedUpload, match=r"no adapter_model\.safetensors; it holds.*\.bin"):
        registry.add_folder("legal", source)
    with pytest.raises(UnsupportedUpload, match="not a folder"):
        registry.add_folder("legal", source / "nothing")
