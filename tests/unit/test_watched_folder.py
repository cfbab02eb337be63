"""PEFT folders that are put into a folder, changed and taken out. Time is the test's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorry.watched_folder import RETRY, SETTLED, WatchedFolder
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload

WEIGHTS = "adapter_model.safetensors"


class Scene:
    """A registry, a watched folder, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "watched"
        self.folder.mkdir()
        self.now = 0.0
        self.removed = "disable"
        self.restart()

    def restart(self) -> None:
        if self.now:
            self.stop()
        self.registry = Registry(
            self.root / "home",
            layout(),
            max_rank=8,
            max_upload=1 << 16,
            max_host_bytes=1 << 20,
            reserved_names=frozenset({"base"}),
        )
        self.watched = WatchedFolder(
            self.registry,
            self.folder,
            home=self.root / "home",
            roots=(),
            max_upload=1 << 16,
            removed=self.removed,
        )
        self.now = self.now or 1.0

    def stop(self) -> None:
        self.watched.close()
        self.registry.close()

    def put(self, name: str, seed: int) -> Path:
        made = save_adapter(self.root / "made" / f"{name}-{seed}", seed)
        return Path(shutil.copytree(made, self.folder / name, dirs_exist_ok=True))

    def look(self, after: float = 0.0) -> None:
        self.now += after
        self.watched.look(self.now)

    def settle(self) -> None:
        self.look()
        self.look(SETTLED)

    def versions(self) -> dict[str, tuple[int, bool]]:
        """The current version of each adapter, and whether it is enabled."""
        return {r.name: (r.current.version, r.enabled) for r in self.registry.records()}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    one = Scene(tmp_path)
    yield one
    one.stop()


def test_put_in_changed_and_taken_out(scene: Scene) -> None:
    scene.put("legal", 1)
    scene.look()
    assert scene.versions() == {}
    scene.look(SETTLED)
    assert scene.versions() == {"legal": (1, True)}
    scene.put("legal", 2)
    scene.settle()
    assert scene.versions() == {"legal": (2, True)}
    shutil.rmtree(scene.folder / "legal")
    scene.look()
    assert scene.versions() == {"legal": (2, True)}
    scene.look(SETTLED)
    assert scene.versions() == {"legal": (2, False)}
    # Put back as it was, or changed: it is enabled again.
    scene.put("legal", 2)
    scene.settle()
    assert scene.versions() == {"legal": (2, True)}
    shutil.rmtree(scene.folder / "legal")
    scene.settle()
    scene.put("legal", 3)
    scene.settle()
    assert scene.versions() == {"legal": (3, True)}
    assert scene.watched.problems() == {}


@pytest.mark.parametrize(("removed", "left"), [("remove", {}), ("keep", {"legal": (1, True)})])
def test_taken_out_as_configured(
    scene: Scene, removed: str, left: dict[str, tuple[int, bool]]
) -> None:
    scene.removed = removed
    scene.restart()
    scene.put("legal", 1)
    scene.settle()
    shutil.rmtree(scene.folder / "legal")
    scene.settle()
    assert scene.versions() == left


def test_a_start_knows_what_came_from_here(scene: Scene) -> None:
    for name in ("stays", "changes", "leaves", "deleted"):
        scene.put(name, 1)
    scene.settle()
    scene.registry.remove("deleted")
    scene.put("changes", 2)
    shutil.rmtree(scene.folder / "leaves")
    scene.restart()
    scene.settle()
    assert scene.versions() == {"stays": (1, True), "changes": (2, True), "leaves": (1, False)}
    scene.look(RETRY)
    assert scene.watched.problems() == {}


def test_half_a_copy_is_not_taken(scene: Scene) -> None:
    made = save_adapter(scene.root / "made", 1)
    target = scene.folder / "legal"
    target.mkdir()
    data = (made / WEIGHTS).read_bytes()
    shutil.copy(made / "adapter_config.json", target)
    for end in range(0, len(data), len(data) // 5):
        # Each part arrives before the last one has settled.
        (target / WEIGHTS).write_bytes(data[:end])
        os.utime(target / WEIGHTS, ns=(end, end))
        scene.look(SETTLED / 2)
    assert scene.versions() == {} and scene.watched.problems() == {}
    # A pause in the copy: half a file does not verify, and that is said.
    scene.look(SETTLED)
    assert scene.versions() == {}
    assert "its data ends at byte" in scene.watched.problems()["legal"]
    (target / WEIGHTS).write_bytes(data)
    scene.settle()
    assert scene.versions() == {"legal": (1, True)} and scene.watched.problems() == {}


def test_files_that_change_while_they_are_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scene.put("legal", 1)
    copy = shutil.copyfile

    def changing(source: Path, to: Path) -> Path:
        if source.name == WEIGHTS:
            (folder / "adapter_config.json").write_text("{")
        return Path(copy(source, to))

    monkeypatch.setattr("lorry.watched_folder.shutil.copyfile", changing)
    scene.settle()
    assert scene.versions() == {} and scene.watched.problems() == {}


def test_a_problem_is_said_once_until_the_files_change(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    folder = scene.put("legal", 1)
    (folder / "adapter_config.json").write_text('{"peft_type": "NONSENSE"}')
    for _ in range(5):
        scene.look(RETRY)
    assert "NONSENSE" in scene.watched.problems()["legal"]
    assert len(caplog.records) == 1
    shutil.rmtree(folder)
    scene.look()
    assert scene.watched.problems() == {}


@pytest.mark.parametrize("name", ["ba d", "x@1", "_private", "base", "a" * 129])
def test_names_that_no_adapter_can_have(
    scene: Scene, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    scene.put(name, 1)
    for _ in range(3):
        scene.look(RETRY)
    assert list(scene.watched.problems()) == [name] and len(caplog.records) == 1
    assert "name" in scene.watched.problems()[name]
    assert scene.versions() == {}


def test_what_is_no_peft_folder_is_passed_over(scene: Scene) -> None:
    scene.put(".hidden", 1)
    (scene.folder / "notes").mkdir()
    (scene.folder / "notes" / "README.md").write_text("no adapter")
    (scene.folder / "file").write_text("no folder")
    (scene.folder / "dangling").symlink_to(scene.folder / "nowhere")
    scene.settle()
    assert scene.versions() == {} and scene.watched.problems() == {}


def test_links_that_lead_elsewhere_are_refused(scene: Scene) -> None:
    made = save_adapter(scene.root / "made", 1)
    (scene.folder / "legal").symlink_to(made)
    scene.settle()
    assert "not allowed as a source" in scene.watched.problems()["legal"]
    assert scene.versions() == {}


def test_large_files_are_refused_before_they_are_copied(scene: Scene) -> None:
    folder = scene.put("legal", 1)
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 30)
    scene.settle()
    assert "--max-upload" in scene.watched.problems()["legal"]


# ---- adapters that are changed over HTTP


def test_an_uploaded_adapter_is_not_touched(scene: Scene) -> None:
    scene.registry.add("legal", upload(save_adapter(scene.root / "1", 1)))
    scene.registry.add("same", upload(save_adapter(scene.root / "2", 2)))
    scene.put("legal", 3)
    scene.put("same", 2)
    scene.settle()
    assert "was uploaded" in scene.watched.problems()["legal"]
    assert list(scene.watched.problems()) == ["legal"]
    for name in ("legal", "same"):
        shutil.rmtree(scene.folder / name)
    scene.settle()
    assert scene.versions() == {"legal": (1, True), "same": (1, True)}
    # The name is free later.
    scene.put("legal", 3)
    scene.settle()
    scene.registry.remove("legal")
    scene.look(RETRY)
    assert scene.versions()["legal"] == (1, True) and scene.watched.problems() == {}


def test_changes_over_http_stay_until_the_folder_changes(scene: Scene) -> None:
    for name in ("new", "off", "gone", "other"):
        scene.put(name, 1)
    scene.settle()
    registry = scene.registry
    registry.put("new", upload(save_adapter(scene.root / "2", 2)))
    registry.patch("off", enabled=False)
    registry.remove("gone")
    registry.remove("other")
    registry.add("other", upload(save_adapter(scene.root / "3", 3)))
    changed = {"new": (2, True), "off": (1, False), "other": (1, True)}
    for _ in range(3):
        scene.look(RETRY)
    assert scene.versions() == changed
    for name in ("new", "off", "gone", "other"):
        scene.put(name, 4)
    scene.settle()
    assert scene.versions() == {
        "new": (3, True),
        "off": (2, False),
        "gone": (1, True),
        "other": (1, True),
    }
    assert list(scene.watched.problems()) == ["other"]


# ---- the watched folder itself


def test_a_folder_that_is_away_takes_nothing_out(scene: Scene) -> None:
    scene.put("legal", 1)
    scene.settle()
    away = scene.folder.with_name("away")
    scene.folder.rename(away)
    for _ in range(3):
        scene.look(RETRY)
    assert "cannot be read" in scene.watched.problems()["."]
    # What is left of a mount.
    scene.folder.mkdir()
    for _ in range(3):
        scene.look(RETRY)
    assert "replaced by an empty folder" in scene.watched.problems()["."]
    scene.restart()
    for _ in range(3):
        scene.look(RETRY)
    assert "is empty" in scene.watched.problems()["."]
    assert scene.versions() == {"legal": (1, True)}
    scene.folder.rmdir()
    away.rename(scene.folder)
    scene.settle()
    assert scene.watched.problems() == {} and scene.versions() == {"legal": (1, True)}


@pytest.mark.parametrize("text", ["", "[]", '{"legal": 3}', '{"legal": {"digest": "x"}}'])
def test_a_damaged_memory_takes_nothing_out(scene: Scene, text: str) -> None:
    scene.put("legal", 1)
    scene.settle()
    (scene.root / "home" / "watched.json").write_text(text)
    scene.restart()
    shutil.rmtree(scene.folder / "legal")
    scene.put("other", 2)
    scene.settle()
    assert scene.versions() == {"legal": (1, True), "other": (1, True)}


def test_a_full_disk_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.put("legal", 1)
    copy: Callable[..., object] = shutil.copyfile

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorry.watched_folder.shutil.copyfile", full)
    scene.settle()
    assert "No space" in scene.watched.problems()["legal"]
    monkeypatch.setattr("lorry.watched_folder.shutil.copyfile", copy)
    scene.look(RETRY)
    assert scene.versions() == {"legal": (1, True)} and scene.watched.problems() == {}


def test_its_memory_is_readable(scene: Scene) -> None:
    scene.put("legal", 1)
    scene.settle()
    kept = json.loads((scene.root / "home" / "watched.json").read_text())
    digest = scene.registry.get("legal").current.digest
    assert kept["legal"]["digest"] == digest and kept["legal"]["ours"] is True
