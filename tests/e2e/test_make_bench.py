"""`python -m benchmarks` (`make bench`) on a tiny base: our server, PEFT, and the goals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import ROOT


@pytest.mark.slow
def test_ours_and_peft_are_measured_and_the_goals_told(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "w,peft", "--repeats", "1"]
    command += ["--model", str(model), "--into", str(tmp_path)]
    paths = [str(ROOT / "server"), str(ROOT / "adapters")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
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
