"""How many servers a load needs, by arithmetic. docs/planning.md has the formulas.

The time of a step is taken as linear in what it computes. `benchmarks/fleet.py` simulates the same
steps one by one, and compares them with recorded ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lorry.errors import LorryError


class Unplannable(LorryError):
    """No number of servers can do it."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds that one server takes."""

    fixed: float
    """A step in any case: the weights are read once."""
    row: float
    """Each row of it that decodes."""
    adapter: float
    """Each adapter in it."""
    prompt_token: float
    """Each token of a prompt in it."""
    load: float
    """From a request for an adapter that is on disk to its place in a slot."""

    def step(self, rows: float, adapters: float, prompt_tokens: float) -> float:
        return (
            self.fixed
            + self.row * rows
            + self.adapter * adapters
            + self.prompt_token * prompt_tokens
        )


RECORDED: Final = StepTimes(0.00294, 0.00032, 0.00018, 0.00025, 0.051)
"""The default base in int8 on two cores, adapters of rank 16: of workload W in
benchmarks/results/2026-11-22-amd-epyc-fbd6a5c649bf.json. `row` is a seventh of the difference
between eight rows and one, `adapter` an eighth of that between eight adapters and none,
`prompt_token` an 80th of the first token's time less one step, and `load` the cold start less
the upload and the warm request."""


@dataclass(frozen=True, slots=True)
class Load:
    rate: float
    """Requests a second, of all servers together."""
    prompt_tokens: float
    new_tokens: float
    adapters: int
    """Registered ones that are asked for."""
    zipf: float = 1.0
    """The k-th most popular is asked for in proportion to 1 / k^zipf; 0 is uniform."""
    cached_share: float = 0.0
    """Share of the prompt tokens that the prefix cache has."""


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """Of each server."""

    max_num_seqs: int = 32
    token_seconds: float = 0.05
    """The longest mean time between two tokens of a stream."""
    utilization: float = 0.6
    """Share of its time that a server may be busy. The rest is for bursts."""
    adapters_in_memory: int = 1
    """Adapters that a server's memory holds, in slots and the host cache."""


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    replicas: int
    rows: int
    """Running requests of each server at its limit: the least `--max-num-seqs`."""
    slots: int
    """`--max-loras` with which none of them waits for a slot."""
    held: int
    """Adapters that each server keeps in memory."""
    hit_share: float
    """Share of the requests whose adapter is in memory, if they go where it is."""
    hit_share_anywhere: float
    """The same if requests go anywhere."""
    seconds_per_token: float
    """Between two tokens at that many rows."""
    most_of_one: float
    """Requests a second that one server can answer."""


def plan(times: StepTimes, load: Load, limits: ReplicaLimits) -> CapacityPlan:
    """Return the fewest servers that answer `load` within `limits`. Requests for one adapter are
    taken to go to one server.

    Raises Unplannable: a single row is slower than `token_seconds`.
    """
    rows = _rows(times, load, limits)
    shares = popularity(load.adapters, load.zipf)
    replicas = 1
    while True:
        # The adapters of each server are a sample of all: every `replicas`-th by popularity.
        held = min(limits.adapters_in_memory, -(-load.adapters // replicas))
        hits = math.fsum(shares[: held * replicas])
        work = request_seconds(times, load, rows, 1 - hits)
        if load.rate * work <= limits.utilization * replicas:
            break
        replicas += 1
    anywhere = math.fsum(shares[: limits.adapters_in_memory])
    return CapacityPlan(
        replicas=replicas,
        rows=rows,
        slots=min(rows, -(-load.adapters // replicas)),
        held=held,
        hit_share=min(1.0, hits),
        hit_share_anywhere=min(1.0, anywhere),
        seconds_per_token=token_seconds(times, load, rows),
        most_of_one=1 / work,
    )


def request_seconds(times: StepTimes, load: Load, rows: int, miss_share: float) -> float:
    """Return how long a server is busy with one request, with `rows` running. A load runs beside
    the steps; its request's share of the batch is idle meanwhile."""
    prompt = times.prompt_token * load.prompt_tokens * (1 - load.cached_share)
    one = times.step(rows, min(rows, load.adapters), 0) / rows
    return prompt + load.new_tokens * one + miss_share * times.load / rows


def token_seconds(times: StepTimes, load: Load, rows: int) -> float:
    """Return the mean time between two tokens of a stream beside `rows` - 1 others, whose prompts
    are read in between."""
    prompt = times.prompt_token * load.prompt_tokens * (1 - load.cached_share)
    return times.step(rows, min(rows, load.adapters), 0) + (rows - 1) * prompt / load.new_tokens


def popularity(adapters: int, zipf: float) -> Sequence[float]:
    """Return each adapter's share of the requests, the most popular first."""
    weights = [1 / rank**zipf for rank in range(1, adapters + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _rows(times: StepTimes, load: Load, limits: ReplicaLimits) -> int:
    """Return the most rows within the time for a token."""
    alone = token_seconds(times, load, 1)
    if alone > limits.token_seconds:
        raise Unplannable(
            f"a single stream has a token every {alone * 1000:.1f} ms, more than the "
            f"{limits.token_seconds * 1000:.1f} ms of --token-ms; take a faster machine or a "
            "smaller base"
        )
    rows = 1
    while rows < limits.max_num_seqs and (
        token_seconds(times, load, rows + 1) <= limits.token_seconds
    ):
        rows += 1
    return rows
