"""The simulation of benchmarks/fleet.py: what holds for every load, and its recorded runs."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fleet
from benchmarks.fleet import Case, Ring
from benchmarks.replica import Arrival, Replica, Server
from lorry.capacity import RECORDED

servers = st.integers(1, 6).flatmap(
    lambda slots: st.builds(
        Server,
        times=st.just(RECORDED),
        rows=st.integers(1, 8),
        slots=st.just(slots),
        memory=st.integers(slots, 10),
        step_tokens=st.integers(16, 128),
        fetchers=st.integers(1, 3),
    )
)
arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 2),
        adapter=st.integers(0, 12),
        prompt_tokens=st.integers(1, 200),
        new_tokens=st.integers(1, 20),
    ),
    min_size=1,
    max_size=40,
).map(lambda found: sorted(found, key=lambda one: one.at))


@given(servers, arrivals, st.none() | st.integers(1, 10))
@settings(deadline=None)
def test_every_request_is_answered_once(
    server: Server, asked: list[Arrival], concurrency: int | None
) -> None:
    out = Replica(server).run(asked, concurrency)
    assert len(out.first_token) == len(out.ended) == len(asked)
    assert out.seconds == max(out.ended)
    assert 0 < out.busy <= out.seconds + 1e-9
    kinds = len({one.adapter for one in asked})
    assert kinds <= out.loads <= len(asked)
    assert out.loads - server.memory <= out.evictions <= out.loads
    assert (out.evictions == 0) == (out.loads <= server.memory)
    # No answer is faster than its own steps and the load that the first request of each waits for.
    for one, first in zip(asked, out.first_token, strict=True):
        assert first >= RECORDED.step(0, 1, min(one.prompt_tokens, server.step_tokens)) - 1e-9
    tokens = sum(one.new_tokens for one in asked)
    assert out.steps >= max(one.new_tokens for one in asked)
    assert out.steps <= tokens + sum(-(-one.prompt_tokens // 1) for one in asked)
    if concurrency is None:
        for one, end in zip(asked, out.ended, strict=True):
            assert end >= one.at
    assert Replica(server).run(asked, concurrency) == out


@given(st.integers(2, 16), st.integers(0, 500))
def test_a_server_more_takes_adapters_and_moves_no_others(replicas: int, first: int) -> None:
    before, after = Ring(replicas), Ring(replicas + 1)
    for index in range(first, first + 50):
        name = f"adapter-{index}"
        (old,), (new,) = before.successors(name, 1), after.successors(name, 1)
        assert new in (old, replicas)
    everybody = before.successors("x", replicas)
    assert sorted(everybody) == list(range(replicas))


def case(policy: str, **fields: int) -> Case:
    return Case(**{"adapters": 200, "replicas": 4, "policy": policy, "requests": 150, **fields})


def test_affinity_loads_less_and_keeps_the_load_spread() -> None:
    server = Server(RECORDED, slots=8, memory=20)
    random, affinity, bounded = (fleet.simulate(case(policy), server) for policy in fleet.POLICIES)
    assert affinity.loads < 0.8 * random.loads
    assert affinity.evictions < random.evictions
    assert bounded.busiest < affinity.busiest
    assert affinity.loads <= bounded.loads < random.loads
    assert fleet.simulate(case("affinity"), server) == affinity
    assert fleet.simulate(case("affinity", seed=1), server) != affinity


def test_an_adapters_requests_go_to_one_server_unless_it_has_too_many() -> None:
    for policy in fleet.POLICIES:
        one = case(policy, adapters=20)
        asked = fleet.arrivals_of(one)
        parts = fleet.route(one, asked)
        assert sorted(chain(*parts), key=lambda a: a.at) == asked
        homes = [sum(any(a.adapter == k for a in part) for part in parts) for k in range(20)]
        assert (max(homes) == 1) == (policy == "affinity")
        if policy == "bounded":
            # Most of an adapter's requests are at home all the same.
            for k in range(20):
                counts = [sum(a.adapter == k for a in part) for part in parts]
                assert max(counts) >= sum(counts) / 3


@pytest.mark.parametrize("one", fleet.check(), ids=lambda one: one.name)
def test_the_model_is_near_the_recorded_runs(one: fleet.Checked) -> None:
    assert one.modelled == pytest.approx(one.measured, rel=0.15)
    assert one.first_token_modelled == pytest.approx(one.first_token_measured, rel=0.3)
