"""The home folder goes while the server runs: uploads and readiness say so, the rest goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings
from support.patience import client


@pytest.fixture
def own(
    tmp_path: Path, settings_for: Callable[..., Settings], archives: Callable[[int], Path]
) -> Iterator[Live]:
    with serve(settings_for(tmp_path / "home")) as live:
        assert live.upload("loaded", archives(1)).status_code == 201
        assert live.upload("stored", archives(2)).status_code == 201
        live.generate("Ahoy", adapter="loaded")
        yield live


def test_a_deleted_home(own: Live, tmp_path: Path, archives: Callable[[int], Path]) -> None:
    ready = own.http.get("/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    answer = own.generate("Ahoy", adapter="loaded")
    base = own.generate("Ahoy")
    shutil.rmtree(tmp_path / "home")
    error = refused(own.upload("new", archives(3)), 503, "home_unusable")
    assert "was deleted" in error["message"] and str(tmp_path / "home") in error["message"]
    for method, path, more in (
        ("PATCH", "/adapters/loaded", {"json": {"scale": 0.5}}),
        ("DELETE", "/adapters/loaded", {}),
        ("GET", "/unclaimed", {}),
        ("PUT", "/adapters/loaded", {"files": {"file": ("x.zip", archives(3).read_bytes())}}),
    ):
        refused(own.http.request(method, path, **more), 503, "home_unusable")
    for path in ("/health", "/health/ready"):
        ready = own.http.get(path)
        assert ready.status_code == 503
        assert ready.json()["status"] == "not ready"
        assert "was deleted" in ready.json()["reason"]
        assert ready.headers["retry-after"]
    assert own.http.get("/health/live").status_code == 200
    # Listed as before, and what is in memory answers as before.
    assert len(own.http.get("/adapters").json()["adapters"]) == 2
    assert own.generate("Ahoy", adapter="loaded") == answer
    assert own.generate("Ahoy") == base
    asked = {"inputs": "Ahoy", "adapter": "stored"}
    unread = own.http.post("/generate", json=asked)
    assert unread.status_code == 503
    assert "was deleted" in unread.json()["error"]


def test_a_large_upload_gets_to_hear_it(own: Live, tmp_path: Path) -> None:
    """One that sends before it reads, as most clients do, must not find a broken connection."""
    shutil.rmtree(tmp_path / "home")
    with client(own.url) as http:
        for _ in range(2):
            form = {"data": {"name": "new"}, "files": {"file": ("x.zip", bytes(8 << 20))}}
            refused(http.post("/adapters", **form), 503, "home_unusable")
            # On the same connection.
            assert http.get("/adapters").status_code == 200


@pytest.mark.parametrize("what", ["catalog.sqlite3", "records", "blobs"])
def test_a_part_of_it_is_deleted(
    own: Live, tmp_path: Path, archives: Callable[[int], Path], what: str
) -> None:
    path = tmp_path / "home" / what
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    error = refused(own.upload("new", archives(3)), 503, "home_unusable")
    assert str(path) in error["message"] and "restart the server" in error["message"]
    assert str(path) in own.http.get("/health/ready").json()["reason"]


def test_what_is_on_its_way_is_not_missed(
    own: Live, tmp_path: Path, archives: Callable[[int], Path]
) -> None:
    shutil.rmtree(tmp_path / "home" / "staging")
    assert own.upload("new", archives(3)).status_code == 201
    assert own.http.get("/health/ready").status_code == 200


def test_a_full_disk_is_a_warning(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    ready = own.http.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready" and "full" in ready.json()["warning"]
