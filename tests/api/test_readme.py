"""The README's commands, run as they are written against a server with such adapters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support import readme

PAGES = {"README.md": 0, "docs/api.md": 8}
"""Versions of `legal` that the page takes for granted. The README adds the first itself."""
OURS = {"lorry adapters", "lorry chat", "lorry ask", "lorry ps"}
"""Commands that talk to a server; `lorry serve` and make start one."""
TICKETS = '"adapter": "tickets"'
"""The page's own example of an adapter that nobody else has."""

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def commands(page: str) -> list[str]:
    """In their order; a line that begins with a space continues one."""
    found: list[str] = []
    for block in readme.shell_blocks((readme.ROOT / page).read_text()):
        for line in re.split(r"\n(?=\S)", block.strip()):
            ours = line.startswith("curl ") or " ".join(line.split()[:2]) in OURS
            if ours and TICKETS not in line:
                found.append(line)
    return found


@pytest.fixture
def served(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    with serve(settings_for(tmp_path / "home")) as one:
        for seed, name in enumerate(("pirate", "bard", "emoji"), start=1):
            assert one.upload(name, archives(seed)).status_code == 201
        yield one


@pytest.mark.parametrize("page", PAGES)
def test_every_command_does_what_it_says(
    page: str,
    served: Live,
    tmp_path: Path,
    archives: Callable[[int], Path],
    peft_adapter: Callable[..., Path],
) -> None:
    shutil.copy(archives(4), tmp_path / "legal.zip")
    shutil.copytree(peft_adapter("llama", "plain", seed=4), tmp_path / "my-adapter")
    for version in range(PAGES[page]):
        served.upload("legal", archives(10 + version), replace="true").raise_for_status()
    shell = (
        'curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'
        f'lorry() {{ {sys.executable} -m lorry "$@"; }}\n'
    )
    written = commands(page)
    assert len(written) >= 5
    for command in written:
        done = subprocess.run(
            ["bash", "-c", shell + command.replace("localhost:8000", served.url)],
            cwd=tmp_path,
            env={**os.environ, "LORRY_URL": served.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
