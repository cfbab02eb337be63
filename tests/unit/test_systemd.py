"""The unit of docs/systemd, as systemd reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorry.settings import options

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "docs/systemd/lorry.service"
PROGRAM = "/opt/lorry/bin/lorry"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="needs systemd-analyze: install the package systemd",
)


def settings_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the program that is installed here."""
    text = UNIT.read_text()
    assert PROGRAM in text
    path = tmp_path / UNIT.name
    path.write_text(text.replace(PROGRAM, str(Path(sys.executable).with_name("lorry"))))
    return path


@needs_systemd
def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "lorry" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@needs_systemd
def test_what_it_needs_not_is_closed(unit: Path) -> None:
    """systemd's own measure: 10 is open, 2 and less is what it calls OK."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_time_to_stop_and_its_processes_stay() -> None:
    given = settings_of(UNIT.read_text())
    grace = next(option.default for option in options() if option.name == "shutdown_grace")
    assert float(given["TimeoutStopSec"][0]) > float(str(grace))
    assert given["KillMode"] == ["mixed"]


def test_its_variables_are_settings() -> None:
    known = {option.variable for option in options()} | {"HOME"}
    given = settings_of(UNIT.read_text())
    assert {line.partition("=")[0] for line in given["Environment"]} <= known
    assert given["WorkingDirectory"] == ["%S/" + given["StateDirectory"][0]]
