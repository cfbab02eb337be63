"""The decode step alone, over and over: what it takes, and something to point a profiler at.

    python -m benchmarks.decode --kernels compiled
    py-spy record --native --rate 150 --format raw --output decode.txt -- \\
      python -m benchmarks.decode --kernels compiled --threads 1 --seconds 10
    python -m benchmarks.decode --phases decode.txt
    python -m benchmarks.flame decode.txt decode.svg --below step_by_step

`--phases` prints where the time went, `flame` draws it, from the stacks of the line before.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.steps import Run, Steps
from lorry.bench.served_base import ServedBase
from lorry.configuration import load_settings
from lorry.model.progress import meter_of

RANK = 16

PHASES = (
    (
        "adapters",
        (
            "shrink",
            "expand",
            "add_delta",
            "vector_delta",
            "inward",
            "lora/kernels",
            "lora/layers.py",
        ),
    ),
    ("attention", ("attend", "attention.py", "scaled_dot_product")),
    ("the base's linears", ("linear_blocks", "fbgemm", "int8.py", "linear_with_input", "qlinear")),
    ("rounding of activations", ("encode",)),
    ("norms, positions, gates", ("rms_norm", "prepare_heads", "activate", "rotate", "modeling_")),
    ("sampling", ("sampler.py", "summarise", "logits.py")),
    ("waiting for threads", ("barrier", "pool_", "pthread", "futex")),
    ("the step's plan and arrays", ("inputs.py", "plan.py", "compiled_model.py", "numpy", "_rope")),
)
"""A stack belongs to the first phase of which a word is in its innermost telling frame."""

MARK = "step_by_step"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--kernels", default="compiled", help="compiled or torch, as of lorry serve"
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=8, help="among which the rows take turns")
    parser.add_argument("--context", type=int, default=100, help="tokens in the cache")
    parser.add_argument("--threads", type=int, help="else as many as PyTorch takes")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--model", help="the base, as for lorry serve")
    parser.add_argument("--home", help="where the base is cached, as for lorry serve")
    parser.add_argument("--phases", type=Path, metavar="FILE", help="of py-spy, in raw format")
    given = parser.parse_args()
    if given.phases is not None:
        print("\n".join(phases(given.phases.read_text().splitlines())))
        return
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    settings = load_settings({"model": given.model, "home": given.home}, os.environ)
    base = ServedBase(settings.model, settings.home, say, meter_of(say))
    steps = Steps(base.folder, kernels=given.kernels, slots=given.adapters, rank=RANK)
    say(steps.chosen)
    run = steps.decode(given.rows, given.context, given.adapters)
    count, wall, worked = step_by_step(run, given.seconds)
    print(
        f"{given.rows} rows, {given.adapters} adapters, {count} steps: "
        f"{wall / count * 1e3:.2f} ms a step, {worked / count * 1e3:.2f} of processor time"
    )
    steps.close()


def step_by_step(run: Run, seconds: float) -> tuple[int, float, float]:
    """How many, and their seconds: on the clock, and of every thread's processor time."""
    for _ in range(10):
        run()
    count, begin, worked = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < begin + seconds:
        run()
        count += 1
    return count, time.perf_counter() - begin, time.process_time() - worked


def phases(stacks: Iterable[str]) -> list[str]:
    """A table in Markdown of lines such as `main;a (file.py:3);b (file.so) 17`."""
    found: Counter[str] = Counter()
    for line in stacks:
        stack, _, samples = line.rpartition(" ")
        if MARK in stack:
            found[phase(stack.split(";"))] += int(samples)
    total = sum(found.values())
    rows = [f"| {name} | {count / total:.1%} |" for name, count in found.most_common()]
    return ["| phase | share of the step |", "|---|---|", *rows]


def phase(frames: list[str]) -> str:
    for frame in reversed(frames):
        for name, words in PHASES:
            if any(word in frame for word in words):
                return name
    return "everything else"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
