"""Long prompts in process: time by position, memory, equality, and the pauses of a stream beside.

.venv/bin/python -m benchmarks.long_prompts                the default base, up to its 8192
.venv/bin/python -m benchmarks.long_prompts --tiny         two layers of random weights, 32768

time     processor time of a prompt token in steps of 512, by position. Attention costs each
         token as much more as it has before it, so a line through the first half predicts the
         second
memory   the process before and after the longest prompt, beside what the cache of so many
         tokens takes
equal    the token behind a prompt in steps of 512, and behind the same prompt in one step
pauses   the gaps of a stream while a prompt of 4000 tokens is read beside it, by the clock,
         with several `--max-step-time`
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.engine import Served
from benchmarks.steps import Steps, save_random_base
from lorry.bench.served_base import ServedBase
from lorry.configuration import load_settings
from lorry.model.progress import meter_of

STEP = 512
TARGETS = (None, 0.2, 0.1, 0.05)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_prompts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--longest", type=int, help="tokens of the longest prompt")
    parser.add_argument("--beside", type=int, default=4000, help="tokens of the prompt in `pauses`")
    parser.add_argument("--home", help="where the base is cached, as for lorry serve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2, help="of `pauses`")
    parser.add_argument("--by-work", action="store_true")
    parser.add_argument("--only", choices=["time", "equal", "pauses"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    longest = given.longest or (32768 if given.tiny else 8192) - 1
    with tempfile.TemporaryDirectory() as scratch:
        if given.tiny:
            folder = Path(scratch)
            save_random_base(folder, hidden=128, inner=256, heads=2, kv_heads=1)
        else:
            settings = load_settings({"home": given.home}, os.environ)
            folder = ServedBase(settings.model, settings.home, say, meter_of(say)).folder
        # All of the longest prompt in one step, where that is asked for.
        one = longest if given.only in (None, "equal") else STEP
        steps = Steps(
            folder, kernels="compiled", slots=0, rank=8, max_tokens=one, cells=longest + 64
        )
    draw = random.Random(1)
    ids = [draw.randrange(3, 500) for _ in range(longest)]
    if given.only in (None, "time"):
        times(steps, ids)
    if given.only in (None, "equal"):
        equal(steps, ids)
    if given.only in (None, "pauses"):
        pauses(steps, ids[: given.beside], given.repeats, by_work=given.by_work)
    steps.close()
    return 0


def times(steps: Steps, ids: Sequence[int]) -> None:
    served = Served(steps, budget=STEP)
    # What the process needs for the first prompt of any length.
    served.add("first", ids[: 2 * STEP], 1)
    served.finish()
    served, before = Served(steps, budget=STEP), resident()
    served.add("prompt", ids, 1)
    each = [1e6 * one.worked / sum(one.rows.values()) for one in served.finish()]
    cache = steps.executor.paths.cache
    stated = cache.nbytes / (cache.num_blocks * cache.block_size) * len(ids) / 2**20
    grown = resident() - before
    print(f"{len(ids)} tokens: {sum(each) * STEP / 1e6:.1f} s of processor time")
    places = [(index + 0.5) * STEP for index in range(len(each))]
    half = len(each) // 2
    slope, begin = statistics.linear_regression(places[:half], each[:half])
    for first in sorted({0, *(len(each) * part // 8 for part in range(1, 8)), len(each) - 2}):
        mine = statistics.mean(each[first : first + 2])
        line = begin + slope * statistics.mean(places[first : first + 2])
        print(f"  tokens {first * STEP} and on: {mine:.0f} µs each, {mine / line:.2f} of the line")
    print(f"  the cache of so many takes {stated:.1f} MiB; the process grew by {grown:.1f} MiB")


def equal(steps: Steps, ids: Sequence[int]) -> None:
    found = []
    for budget in (STEP, 200, len(ids)):
        served = Served(steps, cached=False, budget=budget)
        served.add("prompt", ids, 1)
        found.append(served.finish()[-1].drawn["prompt"][0].token)
    same = all(one == found[0] for one in found)
    print(
        f"{len(ids)} tokens in steps of {STEP}, of 200, and in one: the next is "
        f"{[one.token_id for one in found]}, log-probability {[one.logprob for one in found]}: "
        f"{'the same bits' if same else 'NOT THE SAME'}"
    )


def pauses(steps: Steps, ids: Sequence[int], repeats: int, *, by_work: bool) -> None:
    gaps: dict[float | None, list[float]] = {target: [] for target in TARGETS}
    alone: list[float] = []
    firsts: dict[float | None, list[float]] = {target: [] for target in TARGETS}
    for repeat in range(repeats):
        for target in TARGETS:
            served = Served(steps, cached=False, budget=STEP, max_step_time=target, by_work=by_work)
            served.add("stream", ids[:100], 100_000)
            # What the server has learned from prompts before.
            served.add("earlier", ids[: STEP + repeat], 1)
            while served.scheduler.num_requests > 1:
                served.step()
            for _ in range(20):
                alone.append(step_of(served, by_work))
            served.add("prompt", ids, 1)
            mine: list[float] = []
            while served.scheduler.num_requests > 1:
                mine.append(step_of(served, by_work))
            gaps[target] += mine
            firsts[target].append(sum(mine))
            served.scheduler.cancel("stream")
    print(f"a stream alone: a token every {1e3 * statistics.median(alone):.0f} ms")
    for target in TARGETS:
        ordered = sorted(gaps[target])
        p50, p99 = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
        print(
            f"  {'no limit' if target is None else f'{1e3 * target:.0f} ms'}: gaps p50 {p50:.0f}, "
            f"p99 {p99:.0f}, most {1e3 * ordered[-1]:.0f} ms; the prompt of {len(ids)} took "
            f"{statistics.median(firsts[target]):.1f} s in {len(ordered) // repeats} steps"
        )


def step_of(served: Served, by_work: bool) -> float:
    made = served.step()
    assert made is not None
    assert made.rows["stream"] == 1
    return made.worked if by_work else made.seconds


def resident() -> float:
    """MiB of the process that nothing else shares."""
    return float(psutil.Process().memory_full_info().uss) / 2**20


def say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
