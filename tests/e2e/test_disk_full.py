"""An upload while the disk is full is refused with 507, and nothing else suffers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.server import Server, start

PROMPT = "She said that they would come back"


def answers(server: Server) -> list[object]:
    return [server.generate(PROMPT, adapter)["details"] for adapter in (None, "a")]


def check_refusal_and_recovery(
    server: Server, archive: Callable[..., Path], make_room: Callable[[], None]
) -> None:
    before = answers(server)
    records = server.client.get("/adapters").json()
    refused = server.upload("b", archive("large", 1))
    assert refused.status_code == 507, refused.text
    error = refused.json()["error"]
    assert error["code"] == "storage_full"
    assert error["param"] == "file"
    assert server.client.get("/adapters").json() == records
    assert not list(_inside(server, server.home / "staging").iterdir())
    assert answers(server) == before
    make_room()
    assert server.upload("b", archive("large", 1)).status_code == 201
    assert answers(server) == before
    server.generate(PROMPT, "b")


def _inside(server: Server, path: Path) -> Path:
    """A path as the server's own mount namespace has it."""
    return Path(f"/proc/{server.pid}/root{path}")


def test_full_file_system(model: Path, tmp_path: Path, archive: Callable[..., Path]) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"]).returncode:
        pytest.skip("this machine lets no user mount a file system of their own")
    home = tmp_path / "home"
    home.mkdir()
    mount = f'mount -t tmpfs -o size=2m tmpfs "{home}" && exec "$@"'
    server = start(model, home, wrap=["unshare", "-Urm", "sh", "-c", mount, "sh"])
    try:
        assert server.upload("a", archive("plain", 1)).status_code == 201
        filler = _inside(server, home / "filler")
        free = shutil.disk_usage(filler.parent).free
        filler.write_bytes(bytes(max(0, free - 64 * 1024)))
        check_refusal_and_recovery(server, archive, filler.unlink)
    finally:
        assert server.stop() == 0, server.tail()


def test_file_size_limit(model: Path, tmp_path: Path, archive: Callable[..., Path]) -> None:
    """The same where a single file may not grow, for machines without mounts: EFBIG."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit (util-linux) is not installed")
    server = start(model, tmp_path / "home")
    try:
        assert server.upload("a", archive("plain", 1)).status_code == 201

        def limit(bytes_: str) -> None:
            command = ["prlimit", f"--pid={server.pid}", f"--fsize={bytes_}:unlimited"]
            subprocess.run(command, check=True)

        limit("100000")
        check_refusal_and_recovery(server, archive, lambda: limit("unlimited"))
    finally:
        assert server.stop() == 0, server.tail()
