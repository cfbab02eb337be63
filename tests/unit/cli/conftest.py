"""The command line as a test runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry.cli import main


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`tool("merge", ...)`: runs `lorry adapters merge ... --json`; what it wrote, as JSON, or
    with a `code` other than 0 the error's one line."""

    def run(*arguments: object, code: int = 0) -> Any:
        given = main(["adapters", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert given == code, captured.err
        if code:
            assert captured.out == ""
            assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
            return captured.err
        return json.loads(captured.out)

    return run


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of an adapter's folder, to be spoilt."""
    count = iter(range(1000))

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy{next(count)}"))

    return copy
