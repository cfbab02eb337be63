"""docs/operations.md's commands, run as they are written, on servers in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support import readme, server
from support.server import Server

PAGE = readme.DOCS / "operations.md"
_SHELL = f"""
curl() {{ command curl --silent --show-error --fail-with-body "$@"; }}
lorry() {{ {sys.executable} -m lorry "$@"; }}
"""
FOLDER_FOR_S3 = """
aws() { shift 3; mkdir -p "${2#file://}"; cp -a "${1#file://}/." "${2#file://}"; }
"""
"""Does for a store in a folder what the page says for one in S3."""


def blocks() -> dict[str, list[list[str]]]:
    """The commands of each block, by the heading that they are under. Lines that set variables are
    left out: whoever runs them has values of their own."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading = part.partition("\n")[0]
        for block in readme.shell_blocks(part):
            lines = [line for line in block.splitlines() if not line.startswith("export ")]
            if lines:
                found.setdefault(heading, []).append(lines)
    return found


def section(heading: str) -> str:
    (found,) = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", PAGE.read_text(), re.M | re.S)
    return str(found)


@dataclass(eq=False)
class Operator:
    """Whoever follows the page, with one server or several."""

    model: Path
    homes: tuple[Path, ...]
    backup: Path
    environment: dict[str, str] = field(default_factory=dict)
    """Of the servers and of the commands."""
    shell: str = ""
    servers: list[Server] = field(default_factory=list)

    def start(self) -> None:
        for home in self.homes:
            self.servers.append(server.start(self.model, home, env=self.environment))

    def stop(self) -> None:
        """Every server must end well."""
        for one in self.servers:
            assert one.stop() == 0, one.tail()
        self.servers.clear()

    def follow(self, *commands: list[str], stopped: Callable[[], None] = lambda: None) -> str:
        """Run the commands and return what they write. `stopped` is called behind each stop."""
        said = ""
        for line in (line for block in commands for line in block):
            match line.split("#")[0].split():
                case ["systemctl", "stop", "lorry"]:
                    self.stop()
                    stopped()
                case ["systemctl", "start", "lorry"]:
                    self.start()
                case _:
                    said += self._run(line)
        return said

    def _run(self, line: str) -> str:
        ours: Mapping[str, str] = {"LORRY_HOME": str(self.homes[0]), "BACKUP": str(self.backup)}
        if self.servers:
            url = self.servers[0].url
            line = line.replace("localhost:8000", url)
            ours = {**ours, "LORRY_URL": url}
        done = subprocess.run(
            ["bash", "-e", "-c", _SHELL + self.shell + line],
            env={**os.environ, **self.environment, **ours},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


def lose(folder: Path) -> None:
    shutil.rmtree(folder)
