"""The page's libraries are npm's own, unchanged, and their licences lie beside them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "server" / "lorry" / "ui" / "vendor"

_IMPORT = re.compile(r'(?:^|[;}\n])\s*(?:import|export)\b[^;"\']*?from\s*["\']([^"\']+)["\']')


def test_every_file_is_as_it_was_renewed() -> None:
    packages = json.loads((FOLDER / "versions.json").read_text())
    known = {name: file for package in packages for name, file in package["files"].items()}
    assert {path.name for path in FOLDER.iterdir()} == {*known, "versions.json"}
    for name, file in known.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == file["sha256"], name
    for package in packages:
        assert any(file["path"] == "LICENSE" for file in package["files"].values())


def test_no_module_of_the_page_asks_for_what_is_not_there() -> None:
    found = 0
    for path in FOLDER.parent.rglob("*.js"):
        for quoted in _IMPORT.findall(path.read_text()):
            assert quoted.startswith("."), (path.name, quoted)
            assert (path.parent / quoted).is_file(), (path.name, quoted)
            found += 1
    assert found > 20
