"""An architecture whose attention cannot be replaced is refused at start-up, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorry.bootstrap import assemble
from lorry.errors import UnsupportedModel
from lorry.settings import Settings
from support import tiny


@pytest.mark.parametrize("family", tiny.UNPACKABLE)
def test_unpackable(family: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    settings = Settings(
        model=str(tiny_model(family)),
        home=tmp_path,
        device="cpu",
        dtype="float32",
        quantize="none",
        max_model_len=256,
    )
    architecture = {"falcon": "Falcon", "gptj": "GPTJ", "bloom": "Bloom"}[family]
    with pytest.raises(UnsupportedModel, match=f"{architecture}ForCausalLM is not served"):
        assemble(settings, lambda line: None, on_broken=lambda: None)
