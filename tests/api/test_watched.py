"""A folder that a running server watches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from api.live import serve
from lorry.settings import Settings
from support.patience import client, wait_until


def test_a_folder_that_is_dropped_in_is_served(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    peft_adapter: Callable[..., Path],
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    settings = settings_for(
        tmp_path / "home", watch_adapters=watched, watch_removed="remove", api_key="s3cret"
    )
    with serve(settings) as live:
        base = live.generate()["generated_text"]
        shutil.copytree(peft_adapter("llama", "plain", seed=1), watched / "legal")
        wait_until(lambda: live.http.get("/adapters/legal").status_code == 200)
        first = live.generate(adapter="legal")
        assert first["generated_text"] != base
        shutil.copytree(
            peft_adapter("llama", "plain", seed=2), watched / "legal", dirs_exist_ok=True
        )
        wait_until(lambda: live.http.get("/adapters/legal").json()["version"] == 2)
        assert live.generate(adapter="legal@1")["generated_text"] == first["generated_text"]
        shutil.copytree(watched / "legal", watched / "no name")
        wait_until(lambda: live.http.get("/adapters").json()["watch_problems"])
        problems = live.http.get("/adapters").json()["watch_problems"]
        assert list(problems) == ["no name"] and "not an adapter name" in problems["no name"]
        # Whose key has not the name is told nothing of it.
        body = {"name": "tax", "scopes": ["upload"], "adapters": ["tax-*"]}
        key = live.http.post("/keys", json=body).json()["key"]
        with client(live.url) as other:
            other.headers["x-api-key"] = key
            assert other.get("/adapters").json() == {"adapters": [], "watch_problems": {}}
        shutil.rmtree(watched / "legal")
        wait_until(lambda: live.http.get("/adapters/legal").status_code == 404)
