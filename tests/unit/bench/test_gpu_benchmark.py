"""The GPU benchmark runs, on whatever is here; what it measures there means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    words = (
        "gpu --device cpu --shape tiny --layers 1 --adapters 1,2 --steps 1 --context 20 --rank 4"
    )
    monkeypatch.setattr("sys.argv", [*words.split(), "--json", str(file)])
    assert gpu.main() == 0
    document = json.loads(file.read_text())
    assert document["device"] == "cpu" and document["kernels"] == "torch"
    assert [row["rows"] for row in document["rows"]] == [1, 2]
    assert all(value > 0 for row in document["rows"] for value in row.values())
    assert "adapters/matmuls" in capsys.readouterr().out


def test_without_a_device_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 1
    assert "needs one, with 24 GB" in capsys.readouterr().err
