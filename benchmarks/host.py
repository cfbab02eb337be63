"""The Python time of a compiled step: plans, arrays and drawing, while nothing is computed.

    python -m benchmarks.host

A step of random weights whose one call of C is left out, on one thread. What is measured is what
the interpreter does before and after it: it does not depend on the size of the base.
"""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import Run, Steps, save_random_base

MAX_TOKENS = 4096
ADAPTERS = 8


class Idle:
    """The compiled library, which computes no step: every row's likeliest token is 0."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def lorry_run(self, engine: object, step: Any) -> None:
        arguments = step._obj
        ctypes.memset(arguments.best, 0, arguments.num_wanted * ctypes.sizeof(ctypes.c_int32))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        save_random_base(Path(scratch), hidden=64, inner=128, heads=1, kv_heads=1)
        steps = Steps(
            Path(scratch),
            kernels="compiled",
            slots=ADAPTERS,
            rank=8,
            max_tokens=MAX_TOKENS,
            cells=2 * MAX_TOKENS,
        )
    compiled = steps.executor.paths.compiled
    assert compiled is not None
    compiled._library = Idle(compiled._library)  # type: ignore[assignment]
    cases = {
        "8 rows of decode": steps.decode(8, 100),
        "8 rows of decode, 8 adapters": steps.decode(8, 100, ADAPTERS),
        "512 prompt tokens": steps.prompt(512),
        "512 prompt tokens, an adapter": steps.prompt(512, 1),
        "512 in 8 prompts, 8 adapters": steps.prompt(512, ADAPTERS, 8),
        "4096 prompt tokens": steps.prompt(4096),
        "4096 prompt tokens, an adapter": steps.prompt(4096, 1),
        "4096 in 8 prompts, 8 adapters": steps.prompt(4096, ADAPTERS, 8),
    }
    print("| a step of | µs |\n|---|---|")
    for name, run in cases.items():
        print(f"| {name} | {microseconds(run):.0f} |")
    steps.close()


def microseconds(run: Run, seconds: float = 0.5) -> float:
    """The median."""
    for _ in range(20):
        run()
    found: list[float] = []
    while sum(found) < seconds:
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found) * 1e6


if __name__ == "__main__":
    main()
