"""Several engines on Ray Serve: what they answer, where requests go, and what happens when one
ends."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from lorry.settings import Settings
from support.patience import ENDLESS, PATIENCE, wait_until
from support.server import body
from support.streams import Refused, read, stream
from support.truth import Truth

pytest.importorskip("ray", reason="Ray is not installed: pip install 'lorry[ray]'")

from support.ray_cluster import OnRay, engines, processes, running

PROMPT = "The harbour was quiet in the morning"
ROWS = 2
"""Rows in a step of a replica; it has as many requests that wait."""
SLOTS = 4
ROUNDS = 7


@pytest.fixture(scope="module")
def on_ray(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    settings = Settings(
        model=str(long_model),
        served_model_name="tiny",
        home=tmp_path_factory.mktemp("home"),
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=64 << 20,
        samples=False,
        max_loras=SLOTS,
        max_num_seqs=ROWS,
        host_cache_memory=64 << 20,
        shutdown_grace=PATIENCE,
    )
    with running(settings) as one:
        yield one


@pytest.fixture
def idle(on_ray: OnRay) -> OnRay:
    """Nothing runs or waits, and there are no adapters."""
    for record in on_ray.http.get("/adapters").json()["adapters"]:
        on_ray.http.delete(f"/adapters/{record['name']}").raise_for_status()
    on_ray.wait_until_idle()
    return on_ray


class Endless:
    """Streams that run until they are closed."""

    def __init__(self, on_ray: OnRay) -> None:
        self._on_ray = on_ray
        self._stack = ExitStack()
        # An iterator that nobody holds hangs up.
        self._begun: list[Iterator[dict[str, Any]]] = []

    def __enter__(self) -> Endless:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, count: int, adapter: str | None = None) -> list[Iterator[dict[str, Any]]]:
        """So many that have sent their first token."""
        asked = body(PROMPT, adapter, ENDLESS)
        begun = [self._stack.enter_context(stream(self._on_ray.http, asked)) for _ in range(count)]
        for events in begun:
            next(events)
        self._begun += begun
        return begun


def test_two_engines_answer_and_one_endpoint_has_the_numbers_of_both(
    idle: OnRay, truth: Truth
) -> None:
    told = read(idle.http, body(PROMPT, None, 8))
    assert told.token_ids == truth.base(PROMPT, 8)
    with Endless(idle) as endless:
        endless.begin(2 * ROWS)
        idle.wait_for("vllm:num_requests_running", ROWS, ROWS)
        assert len(idle.each("lorry_engine_steps_total")) == 2
        assert len(idle.each("lorry_host_cache_capacity_bytes")) == 2
    # Clients that hang up cancel what they asked for.
    idle.wait_until_idle()
    text = idle.http.get("/metrics").text
    assert text.count("# TYPE vllm:num_requests_running ") == 1
    assert "lorry_engine_step_seconds_count 0" not in text


def test_changes_of_an_adapter_are_in_force_at_both_engines(
    idle: OnRay, truth: Truth, archive: Callable[..., Path]
) -> None:
    for seed in (1, 2):
        answer = idle.upload("legal", archive("plain", seed))
        assert answer.status_code in (200, 201), answer.text

    def answers() -> None:
        """Twice what one engine takes, so both have the adapter."""
        with ThreadPoolExecutor(8 * ROWS) as pool:
            asked = [
                pool.submit(read, idle.http, body(PROMPT, "legal", 6)) for _ in range(8 * ROWS)
            ]
            for one in asked:
                used = one.result(PATIENCE).events[0]["adapters"]
                assert one.result().token_ids == truth.tokens(PROMPT, used, 6)
                seen.add(used[0]["version"])

    seen: set[int] = set()
    answers()
    assert seen == {2}
    idle.http.patch("/adapters/legal", json={"version": 1}).raise_for_status()
    seen.clear()
    answers()
    assert seen == {1}
    idle.http.patch("/adapters/legal", json={"enabled": False}).raise_for_status()
    for _ in range(4):
        assert idle.http.post("/generate", json=body(PROMPT, "legal")).status_code == 409


def test_a_full_engine_makes_another_one_take_the_adapter(
    idle: OnRay, archive: Callable[..., Path]
) -> None:
    assert idle.upload("hot", archive("plain", 1)).status_code == 201
    loaded = "vllm:lora_adapter_loaded"
    with ThreadPoolExecutor(6 * ROWS) as pool, Endless(idle) as endless:
        endless.begin(1, "hot")
        wait_until(lambda: len(idle.each(loaded, adapter_name="hot")) == 1)
        # A step's worth runs there, and as many can wait. There is no room for the others.
        asked = body(PROMPT, "hot", 4)
        several = [pool.submit(read, idle.http, asked) for _ in range(6 * ROWS)]
        endless.begin(ROWS - 1, "hot")
        wait_until(lambda: len(idle.each(loaded, adapter_name="hot")) == 2)
    for one in several:
        one.result(PATIENCE)


def test_requests_go_where_their_adapter_is(idle: OnRay, archive: Callable[..., Path]) -> None:
    names = [f"a{seed}" for seed in range(SLOTS + 2)]
    for seed, name in enumerate(names):
        assert idle.upload(name, archive("plain", seed)).status_code == 201

    def loads() -> float:
        """After a round of all adapters, of which one engine cannot hold all."""
        for name in names:
            read(idle.http, body(PROMPT, name, 2))
        # As of a report that came after the round.
        steps = "lorry_engine_steps_total"
        before = sum(idle.each(steps).values())
        read(idle.http, body(PROMPT, None, 2))
        wait_until(lambda: sum(idle.each(steps).values()) >= before + 2)
        return sum(idle.each("lorry_adapter_loads_total").values())

    # It takes a while until the router has heard of all that the engines hold. Without affinity a
    # round loads something in nine of ten cases.
    seen = [loads()]

    def settled() -> bool:
        seen.append(loads())
        return len(seen) > ROUNDS and seen[-1] == seen[-ROUNDS]

    wait_until(settled, "an end of the loads")


def test_when_an_engine_is_killed_only_what_it_has_begun_to_answer_is_lost(
    idle: OnRay, truth: Truth
) -> None:
    with ThreadPoolExecutor(2 * ROWS) as pool, Endless(idle) as endless:
        begun = endless.begin(2 * ROWS)
        idle.wait_for("vllm:num_requests_running", ROWS, ROWS)
        waiting = [pool.submit(read, idle.http, body(PROMPT, None, 6)) for _ in range(2 * ROWS)]
        idle.wait_for("vllm:num_requests_waiting", ROWS, ROWS)
        before = idle.each("vllm:num_requests_running").keys()
        engines()[0].kill()

        lost = 0
        for events in begun:
            try:
                # More than what the sockets in between keep.
                for _ in range(2000):
                    next(events)
            except Refused as refused:
                assert "the replica that ran this request ended" in refused.body["error"]
                lost += 1
        assert lost == ROWS
        # What waited at the killed one is answered by its successor, as the other one is full.
        wait_until(lambda: sum(one.done() for one in waiting) == ROWS, "retried requests")
    for one in waiting:
        assert one.result(PATIENCE).token_ids == truth.base(PROMPT, 6)
    idle.wait_until_idle()
    assert len(before & idle.each("vllm:num_requests_running").keys()) == 1


def test_nothing_listens_beyond_this_machine(on_ray: OnRay) -> None:
    listening = [
        ipaddress.ip_address(socket.laddr.ip.removeprefix("::ffff:"))
        for process in [psutil.Process(), *processes()]
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert all(address.is_loopback for address in listening), listening
