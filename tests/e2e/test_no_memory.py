"""An upload for which the server's memory is too small is refused with 507 and numbers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.server import start

SIZE = 300 << 20


def large(archive: Path, to: Path) -> Path:
    """The adapter of `archive` with a tensor more that is far larger than all else."""
    with zipfile.ZipFile(archive) as packed, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as out:
        for name in packed.namelist():
            data = packed.read(name)
            if name.endswith("adapter_model.safetensors"):
                length = int.from_bytes(data[:8], "little")
                header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
                header["more"] = {
                    "dtype": "F32",
                    "shape": [SIZE // 4],
                    "data_offsets": [len(body), len(body) + SIZE],
                }
                text = json.dumps(header).encode()
                data = len(text).to_bytes(8, "little") + text + body + bytes(SIZE)
            out.writestr(name, data)
    return to


def test_an_upload_that_needs_more_memory_than_there_is(
    model: Path, tmp_path: Path, archive: Callable[..., Path]
) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit (util-linux) is not installed")
    server = start(model, tmp_path / "home")

    def limit(bytes_: str) -> None:
        command = ["prlimit", f"--pid={server.pid}", f"--as={bytes_}:unlimited"]
        subprocess.run(command, check=True)

    try:
        assert server.upload("a", archive("plain", 1)).status_code == 201
        answer = server.generate("Ahoy", "a")["details"]["tokens"]
        too_large = large(archive("plain", 2), tmp_path / "large.zip")
        limit(str(psutil.Process(server.pid).memory_info().vms + (150 << 20)))
        refused = server.upload("b", too_large)
        assert refused.status_code == 507, refused.text
        error = refused.json()["error"]
        assert error["code"] == "out_of_memory"
        needed, left = map(int, re.findall(r"\d+", error["message"])[:2])
        assert SIZE <= needed < 2 * SIZE
        assert left < needed
        assert not list((server.home / "staging").iterdir())
        assert server.generate("Ahoy", "a")["details"]["tokens"] == answer
        limit("unlimited")
        # It is no adapter either: what is wrong with it is told now.
        assert server.upload("b", too_large).status_code == 422
        assert server.upload("b", archive("plain", 2)).status_code == 201
    finally:
        assert server.stop() == 0, server.tail()
