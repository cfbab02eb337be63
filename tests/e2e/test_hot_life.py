"""Adapters come, change and go while sixteen streams run; every answer is still right.

What is right is decided from outside: a history says in which states an adapter may have
been while a request was being accepted, the answer says which content and scale it used,
and PEFT says which tokens those make.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.history import VARIANTS, History, Manager, State
from support.patience import ENDLESS, client, wait_until
from support.server import Server, body, running
from support.streams import Refused, read, stream
from support.truth import Truth

STREAMS = 16
ROUNDS = 12
"""Requests of each stream at least."""

CHANGES = 40
"""So often at least something changes meanwhile. The streams go on until it has, and until
somebody has met an adapter that was gone and one that was disabled."""

NAMES = [f"hot{i}" for i in range(8)]
PROMPTS = ["How do I cook rice?", "Ahoy there!"]


@pytest.fixture(scope="module")
def server(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("hot") / "home"
    # Fewer slots and a smaller host cache than adapters: everything is evicted and comes back.
    flags = ["--max-loras", "4", "--max-cpu-loras", "5", "--max-num-seqs", "12"]
    flags += ["--max-num-batched-tokens", "64", "--kv-cache-memory", "64MiB"]
    with running(long_model, home, *flags) as server:
        yield server


@dataclass(frozen=True)
class Told:
    """One request, and what the server said to it."""

    prompt: str
    spec: list[dict[str, Any]]
    began: float
    ended: float
    """When its acceptance, or refusal, was there to read."""
    status: int
    adapters: list[dict[str, Any]]
    token_ids: list[int]
    complete: bool
    asked: int


def ask(http: httpx.Client, random_: random.Random) -> Told:
    names = random_.sample(NAMES, random_.choice([0, 1, 1, 1, 2, 3]))
    spec: list[dict[str, Any]] = [{"name": name} for name in names]
    for one in spec:
        if random_.random() < 0.4:
            one["scale"] = random_.choice([0.25, 1.0, -0.5])
    prompt, count = random_.choice(PROMPTS), random_.randrange(4, 17)
    leaves = random_.random() < 0.15
    began = time.monotonic()
    try:
        with stream(http, body(prompt, spec or None, count)) as events:
            accepted = time.monotonic()
            seen = []
            for event in events:
                seen.append(event)
                if leaves and len(seen) == 2:
                    break
    except Refused as refused:
        return Told(prompt, spec, began, time.monotonic(), refused.status, [], [], False, count)
    ids = [event["token"]["id"] for event in seen]
    complete = seen[-1]["details"] is not None
    assert complete or leaves
    return Told(prompt, spec, began, accepted, 200, seen[0]["adapters"], ids, complete, count)


def judge(told: Told, histories: dict[str, History[State]], truth: Truth) -> None:
    states = {
        one["name"]: histories[one["name"]].between(told.began, told.ended) for one in told.spec
    }
    every = [state for possible in states.values() for state in possible]
    if told.status == 404:
        assert None in every, f"{told}: it was there all the time"
        return
    if told.status == 409:
        assert any(state is not None and not state.enabled for state in every), told
        return
    if told.status == 422:
        # Two names of one content: a sum of an adapter with itself is refused.
        digests = [{state.digest for state in s if state is not None} for s in states.values()]
        assert any(a & b for a, b in combinations(digests, 2)), told
        return
    assert told.status == 200, told
    assert [used["name"] for used in told.adapters] == [one["name"] for one in told.spec]
    for one, used in zip(told.spec, told.adapters, strict=True):
        allowed = {
            (state.digest, one.get("scale", state.scale))
            for state in states[one["name"]]
            if state is not None and state.enabled
        }
        assert (used["digest"], used["scale"]) in allowed, told
    if told.complete:
        assert len(told.token_ids) == told.asked
    expected = truth.tokens(told.prompt, told.adapters, len(told.token_ids))
    assert told.token_ids == expected, told


def life(server: Server, archive: Callable[..., Path], seed: int) -> tuple[list[Told], dict]:
    """A round of it: the streams' answers, and the histories."""
    managers = [Manager(server, NAMES[i::2], archive, seed + i) for i in range(2)]
    for manager in managers:
        manager.create_all()
    stop = threading.Event()

    seen: set[int] = set()

    def eventful() -> bool:
        changes = sum(manager.changes for manager in managers)
        return changes >= CHANGES and seen >= {200, 404, 409}

    def streams(index: int) -> list[Told]:
        random_ = random.Random(seed * 1000 + index)
        with client(server.url) as http:
            told: list[Told] = []
            while len(told) < ROUNDS or not eventful():
                told.append(ask(http, random_))
                seen.add(told[-1].status)
            return told

    with ThreadPoolExecutor(STREAMS + len(managers)) as pool:
        changing = [pool.submit(manager.run, stop) for manager in managers]
        asking = [pool.submit(streams, index) for index in range(STREAMS)]
        try:
            told = [one for future in asking for one in future.result()]
        finally:
            stop.set()
        for future in changing:
            future.result()
    histories = {name: h for manager in managers for name, h in manager.histories.items()}
    for manager in managers:
        manager.delete_all()
    return told, histories


def test_every_answer_is_right_and_nothing_leaks(
    server: Server, archive: Callable[..., Path], truth: Truth
) -> None:
    for variant in VARIANTS:
        for seed in range(2):
            archive(variant, seed)
    files: list[int] = []
    threads: list[int] = []
    for seed in (1, 2):
        told, histories = life(server, archive, seed)
        for one in told:
            judge(one, histories, truth)
        answered = [one for one in told if one.status == 200]
        assert len(answered) > len(told) / 3
        assert sum(len(one.adapters) > 1 for one in answered) > 5

        def idle() -> bool:
            now = server.metrics()
            return all(
                now[name] == 0
                for name in (
                    "vllm:num_requests_running",
                    "vllm:num_requests_waiting",
                    "vllm:kv_cache_usage_perc",
                    "lorry_slots_used",
                    "lorry_host_cache_adapters",
                    "lorry_host_cache_bytes",
                )
            )

        wait_until(idle, "an idle engine")
        assert server.metrics()["lorry_engine_failed_steps_total"] == 0
        assert server.metrics()["lorry_adapter_evictions_total"] > 0
        wait_until(lambda: not list((server.home / "blobs").iterdir()), "the files to go")
        assert not list((server.home / "staging").iterdir())
        files.append(server.open_files())
        threads.append(server.threads())
    # The second life of 192 requests and as many changes leaves no more than the first did,
    # but for a connection or a thread of a pool that the first had not needed.
    assert files[1] <= files[0] + 4, files
    assert threads[1] <= threads[0] + 6, threads


def test_a_running_request_keeps_what_it_started_with(
    server: Server, archive: Callable[..., Path], truth: Truth
) -> None:
    """New content, another scale, disabled, deleted: the stream goes on as it began."""
    first = server.upload("kept", archive("plain", 0)).json()
    asked = body(PROMPTS[0], "kept", ENDLESS)
    made = "vllm:generation_tokens_total"
    before = server.metrics()[made]
    with ExitStack() as stack:
        streams = [_opened(stack, server, asked) for _ in range(8)]
        seen = [[next(events)] for events in streams]
        with archive("large", 1).open("rb") as file:
            second = server.client.put("/adapters/kept", files={"file": file}).json()
        assert second["digest"] != first["digest"]
        server.client.patch("/adapters/kept", json={"scale": 0.5}).raise_for_status()
        other = read(server.client, body(PROMPTS[0], "kept", 5))
        server.client.patch("/adapters/kept", json={"enabled": False}).raise_for_status()
        disabled = server.client.post("/generate", json=asked)
        server.client.delete("/adapters/kept").raise_for_status()
        deleted = server.client.post("/generate", json=asked)
        now = server.metrics()
        assert now["vllm:num_requests_running"] == 8
        # Of eight that run side by side, no one is beyond this before it is read here.
        count = int(now[made] - before) // 8 + 40
        for events, one in zip(streams, seen, strict=True):
            one.extend(islice(events, count - 1))
    assert (disabled.status_code, deleted.status_code) == (409, 404)
    for one in seen:
        (used,) = one[0]["adapters"]
        assert (used["digest"], used["scale"]) == (first["digest"], 1.0)
        ids = [event["token"]["id"] for event in one]
        assert len(ids) == count
        assert ids[:40] == truth.tokens(PROMPTS[0], [used], 40)
        assert ids == [event["token"]["id"] for event in seen[0]]
    (used,) = other.last["adapters"]
    assert (used["digest"], used["scale"]) == (second["digest"], 0.5)
    assert other.token_ids == truth.tokens(PROMPTS[0], [used], 5)
    wait_until(lambda: not list((server.home / "blobs").iterdir()), "the files to go")


def test_files_that_rot_break_one_adapter_only(
    server: Server, archive: Callable[..., Path], truth: Truth
) -> None:
    """Refused by name and listed with its reason; the same files sent again mend it."""
    server.upload("sound", archive("small", 0)).raise_for_status()
    rotten = server.upload("rotten", archive("plain", 0)).json()
    weights = server.home / "blobs" / rotten["digest"].replace(":", "-")
    weights /= "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    def told(adapter: Any) -> httpx.Response:
        return server.client.post("/generate", json=body(PROMPTS[0], adapter, 5))

    for _ in range(2):
        refused = told("rotten")
        assert refused.status_code == 422, refused.text
        assert refused.json()["error_type"] == "adapter_broken"
        assert "rotten" in refused.json()["error"] or rotten["digest"] in refused.json()["error"]
    assert told(["sound", "rotten"]).status_code == 422
    assert server.client.get("/adapters/rotten").json()["broken"]
    for adapter in ("sound", None):
        answer = server.generate(PROMPTS[0], adapter, tokens=5)
        tokens = [token["id"] for token in answer["details"]["tokens"]]
        assert tokens == truth.tokens(PROMPTS[0], answer["adapters"], 5)
    again = server.upload("rotten", archive("plain", 0), replace="true")
    assert again.is_success, again.text
    answer = server.generate(PROMPTS[0], "rotten", tokens=5)
    tokens = [token["id"] for token in answer["details"]["tokens"]]
    assert tokens == truth.tokens(PROMPTS[0], answer["adapters"], 5)
    for name in ("sound", "rotten"):
        server.client.delete(f"/adapters/{name}").raise_for_status()
    wait_until(lambda: not list((server.home / "blobs").iterdir()), "the files to go")


def _opened(stack: ExitStack, server: Server, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return stack.enter_context(stream(stack.enter_context(client(server.url)), asked))
