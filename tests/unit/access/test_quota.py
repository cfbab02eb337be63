"""What a key may use: no test waits, the clock is the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.access.api_key import KeyLimits, KeyRecord, Scope
from lorry.access.quota import Quotas
from lorry.errors import RateLimited


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def key(**limits: int) -> KeyRecord:
    return KeyRecord("0" * 12, "team", frozenset({Scope.GENERATE}), None, KeyLimits(**limits))


@given(
    st.integers(1, 100),
    st.lists(st.floats(0, 90, allow_nan=False), min_size=1, max_size=60),
)
def test_no_minute_has_more_than_two_buckets(limit: int, pauses: list[float]) -> None:
    """In any minute at most what a full bucket holds and what flows in meanwhile; and whoever waits
    as long as they are told is let in."""
    clock, asked = Clock(), key(requests_per_minute=limit)
    quotas, times = Quotas(clock), []
    for pause in pauses:
        clock.now += pause
        try:
            quotas.enter(asked).leave()
        except RateLimited as error:
            clock.now += error.retry_after
            quotas.enter(asked).leave()
        times.append(clock.now)
    for start in times:
        assert sum(start <= one < start + 60 for one in times) <= 2 * limit


@given(st.integers(1, 1000), st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_tokens_keep_to_the_limit_in_the_mean(limit: int, sizes: list[int]) -> None:
    """A request may go beyond, and the next waits until that is made up for."""
    clock, asked = Clock(), key(tokens_per_minute=limit)
    quotas, before = Quotas(clock), 0
    for size in sizes:
        try:
            permit = quotas.enter(asked)
        except RateLimited as error:
            clock.now += error.retry_after
            permit = quotas.enter(asked)
        assert before < limit + clock.now * limit / 60
        quotas.spend(asked, size)
        permit.leave()
        before += size


def test_a_place_is_given_back_once() -> None:
    quotas, asked = Quotas(Clock()), key(concurrent_requests=2)
    first, second = quotas.enter(asked), quotas.enter(asked)
    with pytest.raises(RateLimited, match="key 'team' is limited to 2 by its concurrent_requests"):
        quotas.enter(asked)
    first.leave()
    first.leave()
    over = second.keep()
    second.leave()
    quotas.enter(asked)
    with pytest.raises(RateLimited):
        quotas.enter(asked)
    over()
    quotas.enter(asked)


def test_a_lower_limit_counts_at_once_and_a_higher_one_too() -> None:
    quotas = Quotas(Clock())
    quotas.enter(key(requests_per_minute=10))
    quotas.enter(key(requests_per_minute=1))
    with pytest.raises(RateLimited):
        quotas.enter(key(requests_per_minute=1))
    quotas.enter(key())
