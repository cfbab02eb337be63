"""Servers behind a balancer, simulated: what it brings to send requests where the adapter is.

    python -m benchmarks.fleet                    the table of docs/planning.md
    python -m benchmarks.fleet --check            the model of one server beside recorded runs

Requests come at random (Poisson) and ask for adapters by zipf's law. They go anywhere (random),
to their adapter's server on a ring like nginx's (affinity), or, if that has 1.5 times the mean
of the running requests, to the next of the ring that has not, as Envoy does it (bounded).
Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.replica import Arrival, Outcome, Replica, Server
from lorry.capacity import RECORDED, Load, popularity, request_seconds

POLICIES = ("random", "affinity", "bounded")
BALANCE = 1.5
"""Envoy's `hash_balance_factor`, over 100."""
POINTS = 160
"""Of each server on the ring, as nginx has."""

ROWS = 8
"""At which the capacity of a server is taken for the rate."""


@dataclass(frozen=True, slots=True)
class Case:
    adapters: int
    replicas: int
    policy: str
    zipf: float = 1.0
    busy: float = 0.6
    """Share of its time that a server would be busy if no adapter had to be loaded."""
    requests: int = 1000
    """For each server."""
    prompt_tokens: int = 80
    new_tokens: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    loads: float
    """For each 100 requests."""
    evictions: float
    """The same."""
    first_token_p50: float
    first_token_p99: float
    busiest: float
    """Requests of the server that has most, over the mean."""


class Ring:
    """Servers by consistent hashing."""

    def __init__(self, replicas: int) -> None:
        points = [
            (_hash(f"{replica}-{point}"), replica)
            for replica in range(replicas)
            for point in range(POINTS)
        ]
        points.sort()
        self._keys = [key for key, _ in points]
        self._owners = [replica for _, replica in points]
        self._replicas = replicas

    def successors(self, name: str, count: int) -> list[int]:
        """The first `count` different servers from the name's place on."""
        assert 1 <= count <= self._replicas
        at = bisect.bisect(self._keys, _hash(name))
        found: dict[int, None] = {}
        while len(found) < count:
            found.setdefault(self._owners[at % len(self._owners)])
            at += 1
        return list(found)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8])


def arrivals_of(case: Case) -> list[Arrival]:
    dice = np.random.default_rng([case.seed, case.adapters, case.replicas])
    load = Load(1.0, case.prompt_tokens, case.new_tokens, case.adapters, case.zipf)
    rate = case.busy * case.replicas / request_seconds(RECORDED, load, ROWS, 0.0)
    count = case.requests * case.replicas
    at = np.cumsum(dice.exponential(1 / rate, count))
    chosen = dice.choice(case.adapters, count, p=popularity(case.adapters, case.zipf))
    lengths = dice.geometric(1 / case.new_tokens, count)
    return [
        Arrival(float(time), int(adapter), case.prompt_tokens, int(length))
        for time, adapter, length in zip(at, chosen, lengths, strict=True)
    ]


def route(case: Case, arrivals: Sequence[Arrival]) -> list[list[Arrival]]:
    """The requests of each server, in order. For `bounded` a request is taken to run for as long as
    its steps take in a batch of `ROWS`."""
    dice = np.random.default_rng([case.seed, 1])
    parts: list[list[Arrival]] = [[] for _ in range(case.replicas)]
    anywhere = dice.integers(0, case.replicas, len(arrivals))
    ring = Ring(case.replicas)
    owners: dict[int, list[int]] = {}
    running = [0] * case.replicas
    ends: list[tuple[float, int]] = []
    for index, one in enumerate(arrivals):
        if case.policy == "random":
            parts[int(anywhere[index])].append(one)
            continue
        if one.adapter not in owners:
            owners[one.adapter] = ring.successors(f"adapter-{one.adapter}", case.replicas)
        while ends and ends[0][0] <= one.at:
            running[heapq.heappop(ends)[1]] -= 1
        most = math.ceil(BALANCE * (len(ends) + 1) / case.replicas)
        own = owners[one.adapter]
        chosen = own[0]
        if case.policy == "bounded":
            # There is one: not all can have more than the mean.
            chosen = next(replica for replica in own if running[replica] < most)
        running[chosen] += 1
        seconds = RECORDED.prompt_token * one.prompt_tokens
        seconds += one.new_tokens * RECORDED.step(ROWS, ROWS, 0)
        heapq.heappush(ends, (one.at + seconds, chosen))
        parts[chosen].append(one)
    return parts


def simulate(case: Case, server: Server) -> Figures:
    parts = route(case, arrivals_of(case))
    outcomes = [Replica(server).run(part) for part in parts]
    first = np.concatenate([np.asarray(one.first_token) for one in outcomes])
    return Figures(
        loads=100 * sum(one.loads for one in outcomes) / len(first),
        evictions=100 * sum(one.evictions for one in outcomes) / len(first),
        first_token_p50=float(np.percentile(first, 50)),
        first_token_p99=float(np.percentile(first, 99)),
        busiest=max(map(len, parts)) * case.replicas / len(first),
    )


RECORDS = Path(__file__).parent / "results/2026-11-22-amd-epyc-fbd6a5c649bf.json"


@dataclass(frozen=True, slots=True)
class Checked:
    """A recorded run of workload W beside the model's."""

    name: str
    measured: float
    """Tokens a second."""
    modelled: float
    first_token_measured: float
    """Seconds, median."""
    first_token_modelled: float


def check() -> list[Checked]:
    """Rows of workload W: closed loads of prompts of 80 tokens and answers of 64."""
    rows = {row["name"]: row for row in json.loads(RECORDS.read_text())["lorry"]["rows"]}
    found = []
    for name, adapters, concurrency, requests, slots in (
        ("one adapter, c=1", 1, 1, 18, 16),
        ("one adapter, c=8", 1, 8, 72, 16),
        ("eight adapters, c=8", 8, 8, 72, 16),
        ("64 adapters, 16 slots, zipf, c=8", 64, 8, 144, 16),
    ):
        figures = rows[name]["figures"]
        zipf = 1.5 if "zipf" in name else 0.0
        shares = popularity(adapters, zipf)
        dice = np.random.default_rng(0)
        chosen = dice.choice(adapters, requests, p=shares) if zipf else range(requests)
        asked = [Arrival(0.0, int(one) % adapters, 80, 64) for one in chosen]
        # The recorded runs were warmed up: every adapter was in memory.
        replica = Replica(Server(RECORDED, slots=slots), held=range(adapters))
        out: Outcome = replica.run(asked, concurrency)
        found.append(
            Checked(
                name,
                figures["tokens_per_second"],
                64 * requests / out.seconds,
                figures["first_token"]["p50"],
                float(np.percentile(out.first_token, 50)),
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=1000, help="for each server")
    parser.add_argument("--memory", type=int, default=64, help="adapters in a server's memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.check:
        print(
            "| recorded run | tokens/s | model | first token, ms | model |\n|---|--:|--:|--:|--:|"
        )
        for one in check():
            print(
                f"| {one.name} | {one.measured:.0f} | {one.modelled:.0f} | "
                f"{one.first_token_measured * 1000:.0f} | {one.first_token_modelled * 1000:.0f} |"
            )
        return
    server = Server(RECORDED, memory=given.memory)
    results = []
    print("| adapters | servers | requests go | loads | evictions | p50, ms | p99 | busiest |")
    print("|--:|--:|---|--:|--:|--:|--:|--:|")
    for adapters in given.adapters:
        for replicas in given.replicas:
            for policy in POLICIES if replicas > 1 else POLICIES[:1]:
                case = Case(adapters, replicas, policy, requests=given.requests, seed=given.seed)
                found = simulate(case, server)
                results.append({"case": asdict(case), "figures": asdict(found)})
                print(
                    f"| {adapters} | {replicas} | {policy} "
                    f"| {found.loads:.1f} | {found.evictions:.1f} "
                    f"| {found.first_token_p50 * 1000:.0f} | {found.first_token_p99 * 1000:.0f} "
                    f"| {found.busiest:.2f} |",
                    flush=True,
                )
    if given.json is not None:
        document = {"server": asdict(server), "results": results}
        given.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
