"""`lorry catalog move`: a home's adapters, keys and audit, in a PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorry.access.access_control import AccessControl
from lorry.access.api_key import KeyLimits, Scope
from lorry.cli import main
from lorry_adapters.errors import HomeUnusable
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.registries import acquire

ADMIN = frozenset({Scope.ADMIN})


def opened(home: Path, catalog: str | None = None) -> tuple[Registry, AccessControl]:
    access = AccessControl(None)
    registry = Registry(
        home,
        layout(),
        max_rank=8,
        max_upload=1 << 20,
        max_host_bytes=1 << 20,
        policy=access.policy,
        catalog=catalog,
    )
    access.open(home, registry, catalog)
    return registry, access


def closed(server: tuple[Registry, AccessControl]) -> None:
    registry, access = server
    access.close()
    registry.close()


def test_a_home_is_moved_with_all_it_has(
    tmp_path: Path, catalog_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    registry, access = opened(home)
    for seed in range(3):
        registry.add("a", upload(save_adapter(tmp_path / str(seed), seed)), replace=True)
    registry.remove("a", version=2)
    registry.patch("a", version=1, scale=0.5, enabled=False, description="d")
    registry.remove("a", version=3)
    registry.add("b", upload(tmp_path / "1"), pinned=True)
    _, text = access.keyring.create("boss", ADMIN, ["a*"], KeyLimits(max_rank=4), "")
    records, audit = registry.records(), access.audit.page(limit=100)
    closed((registry, access))

    with pytest.raises(HomeUnusable, match="a catalog of its own"):
        opened(home, catalog_url)
    assert main(["catalog", "move", "--home", str(home), "--catalog", catalog_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["added"] == ["a", "b"] and told["there"] == [] and told["keys"] == 1
    assert all(Path(path).exists() for path in told["kept"])

    registry, access = server = opened(home, catalog_url)
    assert registry.records() == records
    assert access.keyring.find(text.encode()) == access.keyring.get("boss")
    again = access.audit.page(limit=100)
    assert [(e.at, e.action, e.name, e.detail) for e in again] == [
        (e.at, e.action, e.name, e.detail) for e in audit
    ]
    acquire(registry, "b").release()
    # Numbers that were used are not used again.
    record, _ = registry.add("a", upload(tmp_path / "2"), replace=True)
    assert record.current.version == 4
    closed(server)


def test_what_is_there_already_is_left_and_what_contradicts_is_refused(
    tmp_path: Path, catalog_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save_adapter(tmp_path / str(seed), seed) for seed in range(3)]
    command = ["catalog", "move", "--catalog", catalog_url, "--home"]
    for name in ("one", "two", "three"):
        registry, access = opened(tmp_path / name)
        registry.add("same", upload(folders[0]))
        registry.add("other" if name != "three" else "same2", upload(folders[1]))
        registry.add(f"own-{name}", upload(folders[2]))
        if name == "two":
            registry.add("other", upload(folders[2]), replace=True)
        access.keyring.create("boss" if name == "one" else name, ADMIN, None, KeyLimits(), "")
        closed((registry, access))
    assert main([*command, str(tmp_path / "one")]) == 0
    capsys.readouterr()
    assert main([*command, str(tmp_path / "two")]) == 1
    assert "'other' is in the shared catalog already" in capsys.readouterr().err
    # Nothing was changed.
    closed(opened(tmp_path / "two"))
    assert main([*command, str(tmp_path / "three")]) == 0
    assert "2 adapters and 1 keys" in capsys.readouterr().out
    registry, access = server = opened(tmp_path / "four", catalog_url)
    assert [r.name for r in registry.records()] == [
        "other",
        "own-one",
        "own-three",
        "same",
        "same2",
    ]
    assert len(access.keyring.records()) == 2
    closed(server)


def test_without_a_database_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORRY_CATALOG", raising=False)
    assert main(["catalog", "move", "--home", str(tmp_path)]) == 2
    assert "--catalog" in capsys.readouterr().err
    url = f"postgresql://u:secret@/db?host={tmp_path}"
    registry, access = opened(tmp_path / "home")
    closed((registry, access))
    assert main(["catalog", "move", "--home", str(tmp_path / "home"), "--catalog", url]) == 1
    told = capsys.readouterr().err
    assert "cannot be used" in told and "secret" not in told
    assert (tmp_path / "home" / "catalog.sqlite3").exists()
