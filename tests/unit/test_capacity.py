"""The arithmetic of `lorry plan`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.capacity import (
    RECORDED,
    Load,
    ReplicaLimits,
    StepTimes,
    Unplannable,
    plan,
    popularity,
    request_seconds,
)

loads = st.builds(
    Load,
    rate=st.floats(0.1, 200),
    prompt_tokens=st.floats(1, 2000),
    new_tokens=st.floats(8, 500),
    adapters=st.integers(1, 2000),
    zipf=st.floats(0, 2),
)
limits = st.builds(
    ReplicaLimits,
    max_num_seqs=st.integers(1, 64),
    token_seconds=st.floats(0.07, 1),
    utilization=st.floats(0.3, 1),
    adapters_in_memory=st.integers(1, 200),
)


def test_one_server_by_hand() -> None:
    times = StepTimes(fixed=0.004, row=0.001, adapter=0.0005, prompt_token=0.001, load=0.1)
    found = plan(times, Load(1.0, 10, 20, 4), ReplicaLimits(4, 1.0, 1.0, 4))
    # A step of four rows of four adapters takes 10 ms; a request has a quarter of 20 of them, and
    # 10 tokens of prompt.
    assert found.most_of_one == pytest.approx(1 / (20 * 0.010 / 4 + 10 * 0.001))
    assert found.seconds_per_token == pytest.approx(0.010 + 3 * 10 * 0.001 / 20)
    assert (found.replicas, found.rows, found.slots, found.held) == (1, 4, 4, 4)
    assert found.hit_share == pytest.approx(1)


def test_misses_cost_a_load() -> None:
    load = Load(1.0, 10, 20, 100, zipf=0)
    found = plan(RECORDED, load, ReplicaLimits(8, 1.0, 1.0, 25))
    assert found.hit_share == pytest.approx(0.25)
    hit, miss = (request_seconds(RECORDED, load, 8, share) for share in (0, 0.75))
    assert miss - hit == pytest.approx(0.75 * RECORDED.load / 8)
    assert found.most_of_one == pytest.approx(1 / miss)


@given(loads, limits)
def test_it_is_the_fewest_servers_that_suffice(load: Load, limit: ReplicaLimits) -> None:
    try:
        found = plan(RECORDED, load, limit)
    except Unplannable:
        return
    assert found.replicas * limit.utilization * found.most_of_one >= load.rate * (1 - 1e-9)
    assert 1 <= found.rows <= limit.max_num_seqs
    assert found.seconds_per_token <= limit.token_seconds
    assert 1 <= found.slots <= found.rows
    assert found.held <= limit.adapters_in_memory
    assert 0 < found.hit_share_anywhere <= found.hit_share + 1e-9 <= 1 + 2e-9
    if found.replicas > 1:
        fewer = found.replicas - 1
        held = min(limit.adapters_in_memory, -(-load.adapters // fewer))
        hits = math.fsum(popularity(load.adapters, load.zipf)[: held * fewer])
        work = request_seconds(RECORDED, load, found.rows, 1 - hits)
        assert load.rate * work > limit.utilization * fewer * (1 - 1e-9)


@given(st.integers(1, 500), st.floats(0, 3))
def test_shares_add_up_and_fall(adapters: int, zipf: float) -> None:
    shares = popularity(adapters, zipf)
    assert math.isclose(math.fsum(shares), 1)
    assert list(shares) == sorted(shares, reverse=True)


def test_a_machine_that_is_too_slow_is_told_so() -> None:
    with pytest.raises(Unplannable, match=r"every 3\.4 ms"):
        plan(RECORDED, Load(1, 10, 10, 1), ReplicaLimits(token_seconds=0.001))
