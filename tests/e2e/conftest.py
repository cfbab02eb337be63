"""One tiny base, a few adapters for it, and PEFT's word on both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.peft_adapters import pack
from support.truth import Truth


@pytest.fixture(scope="session")
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="session")
def truth(model: Path) -> Truth:
    return Truth(model)


@pytest.fixture(scope="session")
def archive(
    peft_adapter: Callable[..., Path], truth: Truth, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`archive("plain", 3)`: a zip to upload, known to `truth`."""
    root = tmp_path_factory.mktemp("uploads")

    def of(variant: str, seed: int = 0) -> Path:
        path = root / f"{variant}-{seed}.zip"
        if not path.exists():
            folder = peft_adapter("llama", variant, seed=seed)
            truth.learn(folder)
            pack(folder, path)
        return path

    return of
