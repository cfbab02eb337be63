"""`python -m benchmarks` (`make bench`) on a tiny base: our server, PEFT, and the goals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.compiled import require_compiled_step
from support.server import ROOT


def python_m(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "server"), str(ROOT / "adapters")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_ours_and_peft_are_measured_and_the_goals_told(model: Path, tmp_path: Path) -> None:
    flags = ("--only", "w,peft", "--repeats", "1", "--model", str(model), "--into", str(tmp_path))
    done = python_m("benchmarks", *flags)
    (file,) = tmp_path.glob("*.json")
    results = json.loads(file.read_text())
    ours = {row["name"]: row["figures"] for row in results["lorry"]["rows"]}
    assert len(ours) == 5 and all(figures["errors"] == 0 for figures in ours.values())
    for kind in ("nf4", "fp32"):
        assert results["peft"]["rows"][kind].keys() == ours.keys()
    page = file.with_suffix(".md").read_text()
    assert done.stdout.endswith(page)
    # A goal that was measured has a verdict; one whose peer is not at hand says so.
    goals = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in page.splitlines()}
    mixed = goals["eight adapters, c=8, against PEFT nf4, mixed batch"]
    assert mixed[1] == "12x" and mixed[5].strip(" |") in ("yes", "no")
    assert goals["eight adapters, c=8, against llama.cpp server"][5].strip(" |") == "-"
    assert str(tmp_path) not in file.read_text() + page


@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_the_decode_step_alone(kernels: str, model: Path, tmp_path: Path) -> None:
    if kernels == "compiled":
        require_compiled_step()
    flags = ("--kernels", kernels, "--rows", "2", "--adapters", "2", "--seconds", "0.1")
    said = python_m("benchmarks.decode", *flags, "--model", str(model)).stdout
    assert said.startswith("2 rows, 2 adapters, ") and "ms a step" in said
    stacks = tmp_path / "stacks.txt"
    stacks.write_text(
        "main;load (loader.py:1);dequantize (int8.py:2) 500\n"
        "main;step_by_step (decode.py:9);run (compiled_model.py:3);run_step;attend (step.so) 30\n"
        "main;step_by_step (decode.py:9);run (compiled_model.py:3);run_step;shrink (step.so) 70\n"
    )
    table = python_m("benchmarks.decode", "--phases", str(stacks)).stdout
    assert "| adapters | 70.0% |\n| attention | 30.0% |" in table, "of the steps and nothing else"


def test_the_kernels_alone(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    python_m("benchmarks.kernels", "--only", "sampler", "--seconds", "0.001", "--json", str(file))
    rows = json.loads(file.read_text())["rows"]
    assert {row["kernel"] for row in rows} >= {"greedy", "top-p"}
    assert min(row["us"] for row in rows) > 0
