"""What is left to compute behind a prefix that is in the cache: in process, in processor time.

.venv/bin/python -m benchmarks.prefixes            on one thread, so that other work on the
                                                   machine changes little

systems  eight adapters, each with a system prompt of its own: the parts of a miss and of a hit,
         and so what the cache can give for any number of requests
called   an activated LoRA called behind a prefix of the base, against the base's own hit
chat     the first step of each turn of a chat
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys

import torch

from benchmarks.engine import Served
from benchmarks.steps import Steps
from lorry.bench.served_base import ServedBase
from lorry.configuration import load_settings
from lorry.model.progress import meter_of

ADAPTERS, RANK = 8, 16
SYSTEM, QUESTION, ANSWER = 500, 32, 64
"""Tokens of 500 words, of 32 words, and of an answer."""
PREFIX, CALL = 2000, 5
TURN, TURNS = 64, 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefixes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="the base, as for lorry serve")
    parser.add_argument("--home", help="where the base is cached, as for lorry serve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=sorted(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = load_settings({"model": given.model, "home": given.home}, os.environ)
    base = ServedBase(settings.model, settings.home, say, meter_of(say))
    steps = Steps(base.folder, kernels="compiled", slots=ADAPTERS, rank=RANK)
    for name, part in PARTS.items():
        if given.only in (None, name):
            for _ in range(given.repeats):
                print(f"{name}: {part(steps)}", flush=True)
    steps.close()
    return 0


def systems(steps: Steps) -> str:
    served = Served(steps)
    draw = random.Random(next_seed())
    prompts = [tokens(draw, SYSTEM) for _ in range(ADAPTERS)]

    def round_of(number: int) -> tuple[float, float]:
        """Eight requests at once: milliseconds of each for its prompt, and for its answer."""
        for adapter, system in enumerate(prompts):
            served.add(f"{number}-{adapter}", system + tokens(draw, QUESTION), ANSWER, adapter)
        made = served.finish()
        reads = sum(step.worked for step in made if max(step.rows.values()) > 1)
        return 1e3 * reads / ADAPTERS, 1e3 * (sum(s.worked for s in made) - reads) / ADAPTERS

    miss, _ = round_of(0)
    hits = [round_of(number) for number in range(1, 4)]
    hit, answer = (statistics.median(one[at] for one in hits) for at in (0, 1))

    def ratio(count: int) -> float:
        first = min(count, ADAPTERS)
        return (
            count * (miss + answer) / (first * (miss + answer) + (count - first) * (hit + answer))
        )

    ratios = ", ".join(f"{count}: {ratio(count):.2f}" for count in (48, 64, 128, 256))
    return (
        f"a prompt {miss:.0f} ms missed and {hit:.0f} found, an answer {answer:.0f}; "
        f"on against off for so many requests {ratios}, at most "
        f"{(miss + answer) / (hit + answer):.2f}"
    )


def called(steps: Steps) -> str:
    served = Served(steps)
    draw = random.Random(next_seed())
    prefix = tokens(draw, PREFIX)
    served.add("first", prefix + tokens(draw, QUESTION), 1)
    served.finish()
    found: dict[str, list[float]] = {"base": [], "called": []}
    for number in range(7):
        for kind, mine in found.items():
            # The call and the question are new each time.
            ids = prefix + tokens(draw, CALL + QUESTION)
            if kind == "base":
                served.add(f"{kind}-{number}", ids, 1)
            else:
                served.add(f"{kind}-{number}", ids, 1, 0, PREFIX)
            (step,) = served.finish()
            assert sum(step.rows.values()) < CALL + QUESTION + 16
            mine.append(1e3 * step.worked)
    base, other = (statistics.median(one[1:]) for one in found.values())
    return f"base {base:.1f} ms, called {other:.1f}, ratio {other / base:.2f}"


def chat(steps: Steps) -> str:
    served = Served(steps)
    draw = random.Random(next_seed())
    said: list[int] = []
    firsts: list[float] = []
    computed: list[int] = []
    for turn in range(TURNS):
        said += tokens(draw, TURN)
        served.add(str(turn), said, ANSWER)
        first, *others = served.finish()
        for step in (first, *others):
            said += [one.token.token_id for one in step.drawn[str(turn)]]
        firsts.append(1e3 * first.worked)
        computed.append(first.rows[str(turn)])
    turns = ", ".join(f"{one:.0f} ({count})" for one, count in zip(firsts, computed, strict=True))
    return f"ms (tokens computed) by turn {turns}; last to first {firsts[-1] / firsts[0]:.2f}"


PARTS = {"systems": systems, "called": called, "chat": chat}

_seed = iter(range(1 << 30))


def next_seed() -> int:
    """A new one each time, and the same ones in each run."""
    return next(_seed)


def tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(100, 40000) for _ in range(count)]


def say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
