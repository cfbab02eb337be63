"""Bases of real shapes with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import bases


@pytest.mark.parametrize("shape", bases.SHAPES)
def test_every_shape_is_a_model_of_its_size(shape: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(bases.SHAPES[shape]())
    size = sum(parameter.numel() for parameter in model.parameters())
    expected = {
        "gpt2": 0.124,
        "qwen3-0.6b": 0.6,
        "llama-1b": 1.24,
        "gemma2-2b": 2.6,
        "llama-3b": 3.2,
        "phi3-mini": 3.8,
        "olmoe-7b": 6.9,
        "qwen3-30b-a3b": 30.5,
    }
    assert size / 1e9 == pytest.approx(expected[shape], rel=0.03)


def test_an_unknown_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bases", "llama-9b", str(tmp_path)])
    with pytest.raises(SystemExit):
        bases.main()
    assert "llama-1b" in capsys.readouterr().err
