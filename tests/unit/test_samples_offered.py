"""Samples come once; those that a user removed stay away, and those that were lost come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorry import samples
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.registries import missing

NAMES = ("bard", "json", "pirate")
Open = Callable[[], Registry]


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    for seed, name in enumerate(NAMES):
        save_adapter(folder / name, seed)
    entries = [{"name": name, "description": name.title()} for name in NAMES]
    (folder / "samples.json").write_text(json.dumps({"base": "toy", "samples": entries}))
    monkeypatch.setattr(samples, "folder", lambda: folder)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def start(home: Path) -> Iterator[Callable[[], set[str]]]:
    """A start of the server: what is registered after it."""
    opened: list[Registry] = []

    def run() -> Registry:
        if opened:
            opened.pop().close()
        opened.append(
            Registry(home, layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=1 << 20)
        )
        samples.offer(opened[0], "toy", home)
        return opened[0]

    yield run
    opened[0].close()


def names(registry: Registry) -> tuple[str, ...]:
    return tuple(record.name for record in registry.records())


def test_once(start: Open) -> None:
    registry = start()
    assert names(registry) == NAMES
    assert registry.get("bard").description == "Bard"
    registry.remove("bard")
    registry.remove("json")
    assert names(start()) == ("pirate",)
    registry = start()
    registry.remove("pirate")
    assert names(start()) == ()


def test_other_bases_get_none(start: Open, home: Path) -> None:
    registry = start()
    for name in NAMES:
        registry.remove(name)
    assert samples.offer(registry, "other", home) == ()


@pytest.mark.parametrize("text", ["", "[", '["pirate", "bar', "{}", "5", "[5]", "\x00"])
def test_a_damaged_list_stops_no_start(start: Open, home: Path, text: str) -> None:
    start().remove("json")
    (home / samples.OFFERED_FILE).write_text(text)
    found = names(start())
    assert {"bard", "pirate"} <= set(found)
    # One that reads as a list says what it says.
    assert ("json" in found) == (text in ("{}", "[5]"))
    assert names(start()) == found
    json.loads((home / samples.OFFERED_FILE).read_text())


def test_a_damaged_list_in_a_home_that_has_nothing(start: Open, home: Path) -> None:
    home.mkdir()
    (home / samples.OFFERED_FILE).write_text('["pir')
    assert names(start()) == NAMES


def test_a_list_that_cannot_be_written_stops_no_start(
    start: Open, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / samples.OFFERED_FILE).mkdir(parents=True)
    assert names(start()) == NAMES
    assert "cannot be written" in caplog.text


def test_a_lost_catalog_brings_none_back_that_was_removed(start: Open, home: Path) -> None:
    start().remove("bard")
    start()
    missing(home / "catalog.sqlite3")
    assert names(start()) == ("json", "pirate")


def test_lost_with_every_record(start: Open, home: Path, tmp_path: Path) -> None:
    """As in a home from before there were second copies: the files tell what was not removed."""
    registry = start()
    registry.remove("bard")
    registry.add("own", upload(save_adapter(tmp_path / "own", 7)))
    start()
    missing(home / "catalog.sqlite3")
    shutil.rmtree(home / "records")
    registry = start()
    assert names(registry) == ("json", "pirate")
    assert len(registry.unclaimed()) == 1
    assert names(start()) == ("json", "pirate")


def test_lost_with_everything(start: Open, home: Path) -> None:
    start().remove("bard")
    start().close()
    missing(home / "catalog.sqlite3")
    shutil.rmtree(home / "records")
    shutil.rmtree(home / "blobs")
    assert names(start()) == NAMES
