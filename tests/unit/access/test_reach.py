"""A server that other machines may reach asks for a key, or was told not to in so many words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lorry import bootstrap
from lorry.access.access_database import FILE, AccessFile
from lorry.access.access_tables import keys
from lorry.errors import SettingsError
from lorry.settings import Settings


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that were bound: behind the check, and before a base is loaded."""
    found: list[str] = []

    def bind(settings: Settings) -> None:
        found.append(settings.host)
        raise SettingsError("far enough")

    monkeypatch.setattr(bootstrap, "_bind", bind)
    yield found


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "lorry.example.com"])
def test_other_machines_need_a_key(tmp_path: Path, bound: list[str], host: str) -> None:
    with pytest.raises(SettingsError, match=r"there is no API key.*--open-to-anyone"):
        bootstrap.serve(Settings(host=host, home=tmp_path))
    assert bound == []
    for more in ({"open_to_anyone": True}, {"api_key": "s3cret"}):
        with pytest.raises(SettingsError, match="far enough"):
            bootstrap.serve(Settings(host=host, home=tmp_path, **more))  # type: ignore[arg-type]
    assert bound == [host, host]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST."])
def test_this_machine_needs_none(tmp_path: Path, bound: list[str], host: str) -> None:
    with pytest.raises(SettingsError, match="far enough"):
        bootstrap.serve(Settings(host=host, home=tmp_path))
    assert bound == [host]


def test_a_stored_key_is_enough(tmp_path: Path, bound: list[str]) -> None:
    database = AccessFile(tmp_path / FILE)
    with pytest.raises(SettingsError, match="there is no API key"):
        bootstrap.serve(Settings(host="0.0.0.0", home=tmp_path))
    with database.writing() as connection:
        row = {"id": "0" * 12, "name": "boss", "digest": bytes(32), "scopes": ["admin"]}
        now = datetime.now(UTC)
        row |= {"limits": {}, "description": "", "adapters": None}
        sql = keys.insert().values(**row, created_at=now, updated_at=now)
        connection.execute(sql)
    database.close()
    with pytest.raises(SettingsError, match="far enough"):
        bootstrap.serve(Settings(host="0.0.0.0", home=tmp_path))
