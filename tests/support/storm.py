"""`make storm`: sixteen streams of requests while adapters are pushed, replaced, disabled, rolled
back, split, aliased and removed, and clients leave in the middle.

Every answer must be the one that the same request has alone, on the contents and at the scales that
it reports, to the last bit of each log-probability. Which contents and scales may be reported is
decided from outside: by all states in which an adapter was while the request was accepted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from support import mutations
from support.crashes import Scene
from support.history import Entry, History
from support.mutations import Adapter
from support.patience import client, wait_until
from support.server import Server, body, running
from support.streams import Refused, stream

STREAMS = 16
MANAGERS = (("a", "b", "c"), ("d", "e", "f"))
PROMPTS = ("How do I cook rice?", "Ahoy there!")
LONGEST = 12
SCALES = (0.5, 1.0)
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8}
SERVER = ("--quantize", "int8", "--max-loras", "4", "--max-cpu-loras", "5", "--max-num-seqs", "12")
FLAGS = (*SERVER, "--max-num-batched-tokens", "64", "--kv-cache-memory", "64MiB")
"""Fewer slots and a smaller host cache than adapters: everything leaves and comes back."""

Say = Callable[[str], object]
Item = tuple[str, str, int | None, float | None]
"""The adapter that owns the name, the name, a version and a scale of the request's own."""
Used = tuple[tuple[str, float], ...]
"""Digest and scale of each adapter."""


@dataclass(frozen=True)
class Told:
    """One request, and what the server said to it."""

    prompt: str
    items: tuple[Item, ...]
    seed: int | None
    began: float
    ended: float
    """When its acceptance, or refusal, was there to read."""
    status: int
    used: tuple[dict[str, Any], ...] = ()
    tokens: tuple[tuple[int, float], ...] = ()
    """Id and log-probability."""
    complete: bool = False
    asked: int = 0

    def question(self) -> tuple[str, Used, int | None]:
        """What decides the answer."""
        return self.prompt, tuple((one["digest"], one["scale"]) for one in self.used), self.seed


@dataclass
class Storm:
    told: list[Told]
    histories: dict[str, History[Adapter]]
    changes: Counter[str]


class Manager:
    """Changes its own adapters, as operators with scripts would."""

    def __init__(self, server: Server, scene: Scene, names: Sequence[str], dice: random.Random):
        self.histories: dict[str, History[Adapter]] = {name: History() for name in names}
        self.changes: Counter[str] = Counter()
        at, share = [names in one for one in ((m,) for m in MANAGERS)].index(True), 12
        self._contents = range(at * share, (at + 1) * share)
        self._scene, self._dice = scene, dice
        self._client = client(server.url)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.change(self._dice.choice(list(self.histories)))
            time.sleep(self._dice.uniform(0.0, 0.02))

    def change(self, name: str) -> None:
        state = self.histories[name].current
        if state is not None and not state.enabled and self._dice.random() < 0.5:
            # Most are enabled at most times, or few requests would be answered.
            change = mutations.Mutation("enable", name, fields={"enabled": True})
        else:
            free = [one for one in self._contents if one not in self._used()]
            if state is None and not free:
                return
            change = mutations.drawn(self._dice, name, state, free)
        self._make(change, state)

    def remove_all(self) -> None:
        for name, history in self.histories.items():
            if history.current is not None:
                self._make(mutations.Mutation("remove", name), history.current)
        self._client.close()

    def _make(self, change: mutations.Mutation, state: Adapter | None) -> None:
        new = mutations.after(change, state)
        assert new is None or isinstance(new, Adapter)
        entry: Entry[Adapter] = Entry(time.monotonic(), float("inf"), new)
        # It is there for whoever asks from the moment of the request on.
        self.histories[change.name].entries.append(entry)
        answer = mutations.send(self._client, change, self._scene.archives)
        assert answer.is_success, (change, state, answer.status_code, answer.text)
        entry.ended = time.monotonic()
        self.changes[change.what] += 1

    def _used(self) -> set[int]:
        states = (history.current for history in self.histories.values())
        return {one for state in states if state is not None for one in state.versions.values()}


def drawn_items(dice: random.Random) -> tuple[Item, ...]:
    items: list[Item] = []
    for owner in dice.sample("abcdef", dice.choice([0, 1, 1, 1, 1, 2])):
        kinds: list[tuple[str, int | None]] = [
            (owner, None),
            (owner, None),
            (f"{owner}-prod", None),
        ]
        kinds += [(f"{owner}@next", None), (owner, dice.randint(1, 6))]
        name, version = dice.choice(kinds)
        items.append((owner, name, version, dice.choice([None, None, *SCALES])))
    return tuple(items)


def ask(http: httpx.Client, dice: random.Random) -> Told:
    items, prompt, count = drawn_items(dice), dice.choice(PROMPTS), dice.randint(3, LONGEST)
    seed = dice.choice([None, None, 1, 2]) if len(items) < 2 else None
    spec = []
    for _, name, version, scale in items:
        one: dict[str, Any] = {"name": name if version is None else f"{name}@{version}"}
        spec.append(one if scale is None else one | {"scale": scale})
    asked = question(prompt, spec, count, seed)
    leaves = dice.random() < 0.15
    began = time.monotonic()
    try:
        with stream(http, asked) as events:
            accepted = time.monotonic()
            seen: list[dict[str, Any]] = []
            for event in events:
                seen.append(event)
                if leaves and len(seen) == 2:
                    break
    except Refused as refused:
        assert refused.status != 200, refused.body
        return Told(prompt, items, seed, began, time.monotonic(), refused.status)
    tokens = tuple((one["token"]["id"], one["token"]["logprob"]) for one in seen)
    complete = seen[-1]["details"] is not None
    assert complete or leaves
    used = tuple(seen[0]["adapters"])
    return Told(prompt, items, seed, began, accepted, 200, used, tokens, complete, count)


def question(prompt: str, spec: list[dict[str, Any]], count: int, seed: int | None) -> Any:
    drawn = {} if seed is None else {**SAMPLED, "seed": seed}
    return body(prompt, spec or None, count, **drawn)


def storm(
    server: Server,
    scene: Scene,
    seed: int,
    over: Callable[[int, set[int]], bool],
    rounds: int,
) -> Storm:
    """Blow until `over(changes, statuses)`, and each stream has asked `rounds` times."""
    managers = [
        Manager(server, scene, names, random.Random(f"{seed} {names}")) for names in MANAGERS
    ]
    for manager in managers:
        for name in manager.histories:
            manager.change(name)
    stop = threading.Event()
    statuses: set[int] = set()

    def ended() -> bool:
        changes = sum(one.changes.total() for one in managers)
        return stop.is_set() or over(changes, statuses)

    def one_stream(index: int) -> list[Told]:
        dice = random.Random(f"{seed} stream {index}")
        told: list[Told] = []
        with client(server.url) as http:
            while len(told) < rounds or not ended():
                told.append(ask(http, dice))
                statuses.add(told[-1].status)
        return told

    with ThreadPoolExecutor(STREAMS + len(managers)) as pool:
        changing = [pool.submit(manager.run, stop) for manager in managers]
        asking = [pool.submit(one_stream, index) for index in range(STREAMS)]
        try:
            told = [one for future in asking for one in future.result()]
        finally:
            stop.set()
        for future in changing:
            future.result()
    for manager in managers:
        manager.remove_all()
    histories = {name: h for manager in managers for name, h in manager.histories.items()}
    return Storm(told, histories, sum((one.changes for one in managers), Counter()))


def check_choice(told: Told, histories: dict[str, History[Adapter]], scene: Scene) -> None:
    """What was used, or why nothing was, fits a state that there was meanwhile."""
    states = [histories[owner].between(told.began, told.ended) for owner, *_ in told.items]
    if told.status in (404, 422):
        # 422 is for what stands behind an '@' and is neither a version nor an alias.
        assert told.status == 404 or any("@" in name for _, name, *_ in told.items), told
        assert any(
            state is None or not _knows(state, name, version)
            for (_, name, version, _), possible in zip(told.items, states, strict=True)
            for state in possible
        ), f"{told}: it was there all the time"
        return
    if told.status == 409:
        assert any(not state.enabled for one in states for state in one if state), told
        return
    assert told.status == 200, told
    assert [one["name"] for one in told.used] == [owner for owner, *_ in told.items], told
    for (owner, name, version, scale), possible, used in zip(
        told.items, states, told.used, strict=True
    ):
        assert any(
            state is not None
            and state.enabled
            and used["version"] in ({version} if version else state.meaning(name))
            and used["scale"] == (state.scale if scale is None else scale)
            for state in possible
        ), (told, possible)
        # A version that a request uses outlives the rule that would remove it.
        ever = (entry.state for entry in histories[owner].entries if entry.began <= told.ended)
        contents = {state.versions.get(used["version"]) for state in ever if state is not None}
        assert scene.digests.index(used["digest"]) in contents, told


def _knows(state: Adapter, name: str, version: int | None) -> bool:
    if version is not None:
        return version in state.versions
    return name in state.aliases or not name.endswith(("-prod", "@next"))


@dataclass
class Alone:
    """A server that is asked one thing at a time."""

    server: Server
    scene: Scene
    _known: dict[Any, list[tuple[int, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, archive in enumerate(self.scene.archives):
            self.server.upload(f"content{index}", archive).raise_for_status()

    def check(self, told: Told) -> None:
        expected = self._answer(*told.question())
        assert list(told.tokens) == expected[: len(told.tokens)], (told, expected)
        assert not told.complete or len(told.tokens) == told.asked, told

    def asked(self) -> int:
        return len(self._known)

    def _answer(self, prompt: str, used: Used, seed: int | None) -> list[tuple[int, float]]:
        key = prompt, used, seed
        if key not in self._known:
            spec = [
                {"name": f"content{self.scene.digests.index(digest)}", "scale": scale}
                for digest, scale in used
            ]
            with stream(self.server.client, question(prompt, spec, LONGEST, seed)) as events:
                tokens = [(one["token"]["id"], one["token"]["logprob"]) for one in events]
            self._known[key] = tokens
        return self._known[key]


def nothing_is_left(server: Server) -> bool:
    now = server.metrics()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    idle = all(now[name] == 0 for name in (*names, "lorry_slots_used", "lorry_host_cache_bytes"))
    return idle and not any(
        list((server.home / folder).iterdir()) for folder in ("blobs", "staging", "expendable")
    )


def blow(
    scene: Scene,
    root: Path,
    seed: int,
    over: Callable[[int, set[int]], bool],
    rounds: int,
    say: Say = lambda text: None,
) -> str:
    """A storm, and each of its answers compared. Return figures. Raises AssertionError."""
    with running(scene.model, root / "storm", *FLAGS) as server:
        blown = storm(server, scene, seed, over, rounds)
        wait_until(partial(nothing_is_left, server), "nothing to be left")
        assert server.metrics()["lorry_engine_failed_steps_total"] == 0
        evicted = server.metrics()["lorry_adapter_evictions_total"]
    say(f"{len(blown.told)} requests and {blown.changes.total()} changes; now each one alone")
    with running(scene.model, root / "alone", *FLAGS) as server:
        alone = Alone(server, scene)
        for one in blown.told:
            check_choice(one, blown.histories, scene)
            if one.status == 200:
                alone.check(one)
    statuses = Counter(one.status for one in blown.told)
    left = sum(one.status == 200 and not one.complete for one in blown.told)
    return (
        f"seed {seed}: {dict(statuses)} of {len(blown.told)} requests, {left} of them left; "
        f"{blown.changes.total()} changes {dict(blown.changes)}; {evicted:.0f} evictions; every "
        f"answer is one of {alone.asked()} that were made alone"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    say = partial(print, flush=True)
    say(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scene = Scene.made(root / "scene")
        end = time.monotonic() + 60 * given.minutes
        say(blow(scene, root, given.seed, lambda changes, seen: time.monotonic() > end, 1, say))


if __name__ == "__main__":
    sys.exit(main())
