"""A pinned adapter keeps its device slot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from api.live import serve
from lorry.settings import Settings
from support.patience import wait_until


def test_a_pinned_adapter_keeps_its_slot(
    tmp_path: Path, settings_for: Callable[..., Settings], archives: Callable[[int], Path]
) -> None:
    with serve(settings_for(tmp_path / "home", max_loras=2)) as live:
        names = ["pirate", "legal", "third", "fourth"]
        for seed, name in enumerate(names, 1):
            assert live.upload(name, archives(seed)).status_code == 201
        assert live.http.patch("/adapters/pirate", json={"pinned": True}).status_code == 200

        def on_device() -> set[str]:
            found = live.http.get("/adapters").json()["adapters"]
            return {one["name"] for one in found if one["residency"] == "device"}

        for name in names:
            live.generate(adapter=name)
        wait_until(lambda: on_device() == {"pirate", "fourth"})
        assert live.http.patch("/adapters/pirate", json={"pinned": False}).status_code == 200
        live.generate(adapter="third")
        wait_until(lambda: on_device() == {"fourth", "third"})
        # More pinned ones than slots are all served.
        for name in names:
            assert live.http.patch(f"/adapters/{name}", json={"pinned": True}).status_code == 200
        for name in names * 2:
            assert live.generate(adapter=name)
