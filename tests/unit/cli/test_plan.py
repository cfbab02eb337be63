"""`lorry plan` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorry.cli import main

TIMES = [
    *("--step-ms", "4", "--row-ms", "1", "--adapter-ms", "0.5"),
    *("--prompt-token-ms", "1", "--load-ms", "100"),
]


def test_a_plan(tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--rate", "30", "--adapters", "4", "--zipf", "0"]
    load += ["--prompt-tokens", "10", "--new-tokens", "20"]
    limits = ["--max-num-seqs", "4", "--token-ms", "1000", "--utilization", "1"]
    given = ["plan", *load, *limits, *TIMES, "--model", str(tiny_model("llama"))]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # A request takes 60 ms of a server.
    assert (found["replicas"], found["rows"], found["slots"]) == (2, 4, 2)
    assert found["most_of_one"] == pytest.approx(1 / 0.06)
    assert found["hit_share"] == 1
    assert main([*given, "--rank", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter_bytes"] > 1.5 * found["adapter_bytes"]
    assert main(given) == 0
    assert "--max-loras 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--token-ms", "1"], "a single stream"),
        (["--adapter-memory", "1KiB"], "an adapter of rank 16 takes"),
        (["--adapter-memory", "much"], "takes a size"),
    ],
)
def test_what_cannot_be_planned(
    tiny_model: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    given = ["plan", "--rate", "1", *TIMES, "--model", str(tiny_model("llama")), *flags]
    assert main(given) in (1, 2)
    assert words in capsys.readouterr().err


def test_another_base_needs_its_own_times(
    tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--rate", "1", "--model", str(tiny_model("llama"))]) == 1
    assert "--step-ms" in capsys.readouterr().err
