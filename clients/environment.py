"""A group's environment below `build/clients`: made once, and again when its pins change."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from clients.catalog import HERE

BUILT = HERE.parent / "build" / "clients"

PATIENCE = 1800.0
"""Seconds after which an installation has hung."""


class ClientsError(Exception):
    """Says in one line what keeps the clients from being run."""


class NoNodeError(ClientsError):
    """Node.js is not there."""


def build(group: str) -> None:
    """Installs what the group's tests need, where it is not there yet.

    Raises ClientsError where a package cannot be had.
    """
    if (HERE / group / "package.json").exists():
        _node(group)
    else:
        _python(group)


def command(file: str, junit: Path, further: list[str]) -> list[str]:
    """What runs a client's tests and writes what came of them to `junit`.

    `file` is below this folder; `further` are the test runner's own arguments.
    """
    group, _, name = file.partition("/")
    if name.endswith(".mjs"):
        # JavaScript looks for packages beside the file that asks for them.
        shutil.copy(HERE / file, BUILT / group)
        wanted = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
        wanted += ["--test-reporter=junit", f"--test-reporter-destination={junit}"]
        return ["node", "--test", *wanted, *further, str(BUILT / file)]
    wanted = ["-c", str(HERE / "pytest.ini"), f"--junitxml={junit}"]
    return [str(_interpreter(group)), "-m", "pytest", *wanted, str(HERE / file), *further]


def _interpreter(group: str) -> Path:
    return BUILT / group / ("Scripts" if os.name == "nt" else "bin") / "python"


def _python(group: str) -> None:
    asked = [HERE / group / "requirements.txt", HERE / group / "constraints.txt"]
    venv = BUILT / group
    made = venv / ".made-from"
    wanted = _digest(asked) + sys.version
    if not (made.exists() and made.read_text() == wanted):
        print(f"==> build/clients/{group}: {group}/requirements.txt", flush=True)
        shutil.rmtree(venv, ignore_errors=True)
        # Our own pip fills it: the venv needs none, and some distributions split ensurepip off.
        _run(group, [sys.executable, "-m", "venv", "--without-pip", str(venv)])
        pip = [sys.executable, "-m", "pip", "--python", str(_interpreter(group)), "install"]
        pip += ["--quiet", "--disable-pip-version-check", "--no-input", "--prefer-binary"]
        torch = re.findall(r"^torch==\S+$", asked[1].read_text(), re.MULTILINE)
        if torch:
            # Alone, as the Makefile installs it: its index has no other package.
            index = os.environ.get("TORCH_INDEX")
            _run(group, [*pip, "--no-deps", *(["--index-url", index] if index else []), *torch])
        _run(group, [*pip, "--requirement", str(asked[0]), "--constraint", str(asked[1])])
        made.write_text(wanted)


def _node(group: str) -> None:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NoNodeError(f"clients/{group} needs Node.js 20 or later with npm")
    asked = [HERE / group / "package.json", HERE / group / "package-lock.json"]
    folder = BUILT / group
    made = folder / ".made-from"
    wanted = _digest(asked)
    if not (made.exists() and made.read_text() == wanted):
        print(f"==> build/clients/{group}: {group}/package.json", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in asked:
            shutil.copy(file, folder)
        _run(group, [npm, "ci", "--no-audit", "--no-fund", "--prefix", str(folder)])
        made.write_text(wanted)


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _run(group: str, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ClientsError(
            f"the packages of clients/{group} were not installed within {PATIENCE / 60:g} minutes"
        ) from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().splitlines()
        why = [line for line in said if "error" in line.lower()] or said or ["no reason was given"]
        raise ClientsError(f"the packages of clients/{group} cannot be installed: {why[0]}")
