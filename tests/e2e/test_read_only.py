"""The home may no longer be written: uploads and readiness say so, and all else goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.server import start

PROMPT = "She said that they would come back"


def test_a_home_without_the_right_to_write(
    model: Path, tmp_path: Path, archive: Callable[..., Path]
) -> None:
    wrap = []
    if os.geteuid() == 0:
        # Root may write wherever it likes, unless that is taken from it.
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv (util-linux) is not installed")
        wrap = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    home = tmp_path / "home"
    server = start(model, home, wrap=wrap)
    folders = [home, *(path for path in home.iterdir() if path.is_dir())]

    def allow(mode: int) -> None:
        for folder in folders:
            folder.chmod(mode)

    try:
        assert server.upload("a", archive("plain", 1)).status_code == 201
        answer = server.generate(PROMPT, "a")["details"]["tokens"]
        allow(0o555)
        refused = server.upload("b", archive("plain", 2))
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "home_unusable"
        assert "cannot be written" in refused.json()["error"]["message"]
        assert server.client.patch("/adapters/a", json={"scale": 2}).status_code == 503
        assert server.client.delete("/adapters/a").status_code == 503
        ready = server.client.get("/health/ready")
        assert ready.status_code == 503
        assert "cannot be written" in ready.json()["reason"]
        assert server.generate(PROMPT, "a")["details"]["tokens"] == answer
        allow(0o755)
        assert server.client.get("/health/ready").status_code == 200
        assert server.upload("b", archive("plain", 2)).status_code == 201
    finally:
        allow(0o755)
        assert server.stop() == 0, server.tail()
