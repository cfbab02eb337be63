"""Places in the queue, and callers who come when others have taken all of them."""

from __future__ import annotations

import pytest

from lorry.engine.places import Places
from lorry.errors import QueueFull


def test_as_many_as_there_are_and_again_when_one_is_left() -> None:
    places = Places(3)
    held = [places.enter("a") for _ in range(3)]
    with pytest.raises(QueueFull, match="3 requests are waiting, the limit is 3") as refused:
        places.enter("a")
    assert refused.value.retry_after >= 1
    with pytest.raises(QueueFull):
        places.check("a")
    held[1].leave()
    held[1].leave()
    assert places.taken == 2
    places.check("a")
    places.enter("a")
    with pytest.raises(QueueFull):
        places.enter("a")


def test_one_caller_s_queue_keeps_no_other_out() -> None:
    places = Places(2)
    held = [places.enter("a"), places.enter("a")]
    late = places.enter("b")
    for caller in ("a", "b"):
        with pytest.raises(QueueFull):
            places.enter(caller)
    places.enter("c")
    # Strangers without number are a flood as well.
    with pytest.raises(QueueFull):
        places.enter("d")
    held[0].leave()
    places.enter("d")
    late.leave()
    with pytest.raises(QueueFull):
        places.enter("a")


def test_no_places_at_all() -> None:
    with pytest.raises(QueueFull):
        Places(0).enter("a")


def test_one_request_that_becomes_several_takes_a_place_for_each() -> None:
    places = Places(2)
    first = places.enter("a")
    assert first.use() is first
    second = first.use()
    assert second is not first
    assert second.caller == "a"
    with pytest.raises(QueueFull):
        first.use()
    assert places.taken == 2
    for one in (first, second):
        one.leave()
    assert places.taken == 0


def test_a_place_that_is_shared_serves_every_sequence() -> None:
    places = Places(1)
    place = places.enter("a").share()
    assert place.use() is place and place.use() is place
    assert places.taken == 1
    place.leave()
    assert places.taken == 0
