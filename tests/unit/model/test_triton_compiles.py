"""The Triton kernels become machine code for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

TESTS = Path(__file__).resolve().parents[2]

SHARED = 99 * 1024
"""Bytes of shared memory that a program may have on every GPU since compute capability 8.0:
CUDA's programming guide, technical specifications."""


def test_every_kernel_compiles_and_fits(tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "support.compile_kernels"],
        cwd=TESTS,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4 * 6
    for made in found:
        assert made["bytes"] > 0
        assert made["shared"] <= SHARED, made
        if made["kernel"] != "merge":
            # What half precision is for; fp32 is never rounded to tf32 for them.
            assert bool(made["matrix units"]) == (made["dtype"] != "fp32"), made
