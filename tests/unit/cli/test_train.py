"""`lorry train` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorry.cli import main

PAIRS = [
    {"prompt": f"How do I cook {'rice and ' * n}eggs?", "completion": "Arr!"} for n in range(6)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


def test_from_examples_to_an_adapter_that_a_server_takes(
    data: Path, tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = str(tiny_model("llama")), tmp_path / "arr"
    line = ["train", str(data), "--name", "arr", "--base", base, "--out", str(out)]
    settings = ["--steps", "20", "--rank", "2", "--method", "rslora", "--validation", "0.2"]
    assert main([*line, *settings]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: 20 steps in ")
    assert "% of the base" in said.out
    assert "step 20 of 20: validation loss" in said.err
    assert main(["adapters", "check", str(out), "--base", base]) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 2, True)
    capsys.readouterr()
    assert main(line) == 2
    assert "has an adapter already" in capsys.readouterr().err


def test_a_look_at_the_data_trains_nothing(
    data: Path, tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_model("llama"))
    assert main(["train", str(data), "--check", "--base", base, "--max-length", "40"]) == 0
    out = capsys.readouterr().out
    assert "»Arr!<|im_end|></s>«" in out
    assert "left out, as they are longer than 40 tokens" in out
    assert main(["train", str(data), "--check", "--base", base, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["examples"], report["recipe"]["rank"]) == (6, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ([], 2, "--name says"),
        (["--name", "a", "--method", "lra"], 2, "--method must be one of lora, rslora"),
        (["--name", "a", "--validation", "gone.jsonl"], 1, "gone.jsonl cannot be read"),
        (["--name", "a", "--rank", "0"], 2, "--rank must be at least 1"),
        (["--name", "a", "--form", "verse"], 2, "--form must be"),
    ],
)
def test_mistakes_are_one_line(
    data: Path,
    tiny_model,
    more: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(data), "--base", str(tiny_model("llama")), *more]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
