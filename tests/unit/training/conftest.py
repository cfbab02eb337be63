"""A tiny base as `lorry train` finds it, and files of examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry.model.base_source import BaseSource
from support import tiny
from support.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> BaseSource:
    folder = tiny.save_model("llama", tmp_path_factory.mktemp("trained") / "model")
    return BaseSource(folder, "tiny", "tiny", None)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer(add_bos=True)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """`lines({...}, "raw text")`: a JSON Lines file of those."""

    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
        return path

    return write
