"""Power fails at any moment: afterwards each change is there whole, or not at all.

The home is copied before every call that reaches the disk for good; each copy is what
a crash at that moment leaves, and is opened as a restart would: as it is, and with the
catalog damaged by the crash in every way there is.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.catalog import Catalog
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.registries import DAMAGES, blobs, copy_home


def open_registry(home: Path) -> Registry:
    return Registry(home, layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=1 << 20)


def states(registry: Registry) -> dict[str, list[str]]:
    return {r.name: [v.digest for v in r.versions] for r in registry.records()}


def crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Registry], object]
) -> list[dict[str, list[str]]]:
    """What a restart finds, in the order of the moments: name -> digests of its versions."""
    home = tmp_path / "home"
    new = digest_of(save_adapter(tmp_path / "2", 2))
    registry = open_registry(home)
    registry.add("old", upload(tmp_path / "1"))
    before = states(registry)
    copies: list[Path] = []

    def copying(call: Callable[..., Any]) -> Callable[..., Any]:
        def copy_first(*args: Any, **kwargs: Any) -> Any:
            copies.append(tmp_path / f"copy{len(copies)}")
            copy_home(home, copies[-1])
            return call(*args, **kwargs)

        return copy_first

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", copying(os.fsync))
        patch.setattr(os, "rename", copying(os.rename))
        patch.setattr(Catalog, "save", copying(Catalog.save))
        patch.setattr(Catalog, "forget", copying(Catalog.forget))
        change(registry)
    copies.append(tmp_path / "after")
    copy_home(home, copies[-1])
    after = states(registry)
    registry.close()

    for left in copies:
        for number, damage in enumerate(DAMAGES):
            lost = left.with_name(f"{left.name}-{number}")
            shutil.copytree(left, lost)
            damage(lost / "catalog.sqlite3")
            again = open_registry(lost)
            # Nobody was told yet what had happened, but of the last.
            assert states(again) in ([before, after] if left != copies[-1] else [after])
            assert blobs(lost) >= {digest for ones in states(again).values() for digest in ones}
            again.close()
            shutil.rmtree(lost)

    found = []
    for left in copies:
        again = open_registry(left)
        digests = states(again)
        owned = {digest for versions in digests.values() for digest in versions}
        # What came in and was not recorded is kept; what was removed is gone.
        unclaimed = {content.digest for content in again.unclaimed()}
        assert unclaimed <= {new}
        assert blobs(left) == owned | unclaimed
        assert list((left / "staging").iterdir()) == []
        for name in digests:
            lease = again.acquire([AdapterChoice(name)])
            assert again.weights(lease.refs[0].digest).digest == digests[name][-1]
            lease.release()
        again.close()
        found.append(digests)
    return found


@pytest.fixture
def one(tmp_path: Path) -> str:
    return digest_of(save_adapter(tmp_path / "1", 1))


@pytest.fixture
def two(tmp_path: Path) -> str:
    return digest_of(save_adapter(tmp_path / "2", 2))


def steps(found: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
    """Without repetitions of what came just before."""
    return [state for number, state in enumerate(found) if not number or state != found[number - 1]]


def test_adding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, two: str) -> None:
    found = crashes(tmp_path, monkeypatch, lambda r: r.add("new", upload(tmp_path / "2")))
    assert len(found) >= 6
    assert steps(found) == [{"old": [one]}, {"new": [two], "old": [one]}]


def test_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, two: str) -> None:
    found = crashes(tmp_path, monkeypatch, lambda r: r.put("old", upload(tmp_path / "2")))
    assert steps(found) == [{"old": [one]}, {"old": [one, two]}]


def test_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str) -> None:
    found = crashes(tmp_path, monkeypatch, lambda r: r.remove("old"))
    assert steps(found) == [{"old": [one]}, {}]


def test_removed_but_still_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str
) -> None:
    def change(registry: Registry) -> None:
        registry.acquire([AdapterChoice("old")])
        registry.remove("old")

    assert steps(crashes(tmp_path, monkeypatch, change)) == [{"old": [one]}, {}]
