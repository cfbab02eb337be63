"""`lorry serve` tells what is wrong before it loads anything heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lorry_adapters.registry.home import Home

PROGRAM = """
import sys
from lorry.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules)
sys.exit(code)
"""


def told(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr
    return done.stderr


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    said = told(tmp_path / "nope", "--home", tmp_path)
    assert said == f"error: there is no folder and no file {tmp_path / 'nope'}\n"


def test_a_home_in_use(tmp_path: Path) -> None:
    used = Home(tmp_path)
    assert "another server uses the home folder" in told("--home", tmp_path)
    used.close()


def test_a_cache_larger_than_the_machine(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    arguments = ["--home", str(tmp_path), "--device", "cpu", "--kv-cache-memory", "500000GiB"]
    command = [sys.executable, "-m", "lorry", "serve", str(tiny_model("llama")), "--port", "0"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is more memory than the machine has" in done.stderr
    assert "loading" not in done.stderr
