"""Adapters on their way to slots, with real threads and a fetch that a test holds back."""

import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from lorry.engine.residency import FETCHERS, NICENESS, SlotResidency
from lorry_adapters.errors import AdapterBroken, AdapterError, UnknownAdapter
from lorry_adapters.lora.slot_table import SlotTable
from lorry_adapters.lora.weights import AdapterWeights
from support.patience import PATIENCE


class Depot:
    """Where adapters come from: each fetch waits for its gate, and may fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.gates: dict[str, threading.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.fetched: list[str] = []
        self.placed: dict[int, str] = {}
        self.place_error: Exception | None = None
        self.changed = threading.Condition()
        self.wakes = 0
        self.niceness = 0

    def hold(self, digest: str) -> threading.Event:
        return self.gates.setdefault(digest, threading.Event())

    def fetch(self, digest: str) -> AdapterWeights:
        with self.changed:
            self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            self.fetched.append(digest)
            self.changed.notify_all()
        gate = self.gates.get(digest)
        assert gate is None or gate.wait(PATIENCE)
        if digest in self.errors:
            raise self.errors[digest]
        return AdapterWeights(digest, {}, 0)

    def place(self, slot: int, weights: AdapterWeights) -> None:
        if self.place_error is not None:
            raise self.place_error
        self.placed[slot] = weights.digest

    def wake(self) -> None:
        with self.changed:
            self.wakes += 1
            self.changed.notify_all()

    def until(self, true: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, timeout=PATIENCE)


@pytest.fixture
def depot() -> Iterator[Depot]:
    depot = Depot()
    yield depot
    for gate in depot.gates.values():
        gate.set()


@pytest.fixture
def residency(depot: Depot) -> Iterator[Callable[[int], SlotResidency]]:
    made: list[SlotResidency] = []

    def of(num_slots: int) -> SlotResidency:
        made.append(
            SlotResidency(
                SlotTable(num_slots), fetch=depot.fetch, place=depot.place, wake=depot.wake
            )
        )
        return made[-1]

    yield of
    for gate in depot.gates.values():
        gate.set()
    for one in made:
        one.close()


def acquired(residency: SlotResidency, depot: Depot, *digests: str) -> tuple[int, ...]:
    """Acquire as the engine does: again after every wake, until it is there."""
    while True:
        wakes = depot.wakes
        slots = residency.acquire(digests)
        if slots is not None:
            return slots
        depot.until(lambda wakes=wakes: depot.wakes > wakes)


Make = Callable[[int], SlotResidency]


def test_not_yet_until_the_fetch_has_ended_which_wakes_the_engine(
    residency: Make, depot: Depot
) -> None:
    one, gate = residency(2), depot.hold("a")
    assert one.acquire(["a"]) is None
    depot.until(lambda: depot.fetched)
    assert one.acquire(["a"]) is None
    assert depot.wakes == 0
    gate.set()
    depot.until(lambda: depot.wakes)
    assert one.acquire(["a"]) == (1,)
    assert depot.placed == {1: "a"}
    assert depot.fetched == ["a"]
    assert one.loads == 1


def test_what_is_in_a_slot_is_there_at_once(residency: Make, depot: Depot) -> None:
    one = residency(2)
    acquired(one, depot, "a")
    one.release(["a"])
    assert one.acquire(["a"]) == (1,)
    assert (depot.fetched, one.loads) == (["a"], 1)


def test_what_users_pinned_keeps_its_slot(depot: Depot) -> None:
    pinned = {"a"}
    one = SlotResidency(
        SlotTable(2),
        fetch=depot.fetch,
        place=depot.place,
        wake=depot.wake,
        pinned=lambda: pinned,
    )
    try:
        for digest in "abcd":
            acquired(one, depot, digest)
            one.release([digest])
        assert one.slots.resident == ("a", "d")
        pinned.clear()
        acquired(one, depot, "e")
        assert one.slots.resident == ("d", "e")
    finally:
        one.close()


def test_nothing_to_bring_is_there_at_once(residency: Make) -> None:
    assert residency(1).acquire([]) == ()


def test_several_are_pinned_together_or_not_at_all(residency: Make, depot: Depot) -> None:
    one, gate = residency(2), depot.hold("b")
    assert one.acquire(["a", "b"]) is None
    depot.until(lambda: depot.wakes == 1)
    assert one.acquire(["a", "b"]) is None
    assert (one.slots.num_pinned, depot.placed) == (0, {})
    gate.set()
    depot.until(lambda: depot.wakes == 2)
    assert one.acquire(["a", "b"]) == (1, 2)
    assert one.slots.num_pinned == 2


def test_two_names_of_one_content_share_a_slot(residency: Make, depot: Depot) -> None:
    one = residency(1)
    assert acquired(one, depot, "a", "a") == (1, 1)
    one.release(["a"])
    assert one.acquire(["b"]) is None
    assert one.slots.num_pinned == 1
    one.release(["a"])
    assert acquired(one, depot, "b") == (1,)
    assert one.evictions == 1


def test_slots_in_use_are_waited_for_without_reading_anything(
    residency: Make, depot: Depot
) -> None:
    one = residency(1)
    acquired(one, depot, "a")
    for digest in "bcdefgh":
        assert one.acquire([digest]) is None
    assert depot.fetched == ["a"]
    one.release(["a"])
    assert acquired(one, depot, "b") == (1,)
    assert depot.placed == {1: "b"}


def test_companions_do_not_evict_each_other(residency: Make, depot: Depot) -> None:
    one = residency(2)
    for digest in "ab":
        acquired(one, depot, digest)
        one.release([digest])
    # "a" is the older one, but wanted.
    assert acquired(one, depot, "a", "c") == (1, 2)
    assert one.slots.resident == ("a", "c")


# ---- failures


def test_a_failing_fetch_is_told_once_and_tried_again(residency: Make, depot: Depot) -> None:
    one = residency(1)
    depot.errors["a"] = UnknownAdapter("gone")
    assert one.acquire(["a"]) is None
    depot.until(lambda: depot.wakes)
    with pytest.raises(UnknownAdapter):
        one.acquire(["a"])
    del depot.errors["a"]
    assert one.acquire(["a"]) is None
    depot.until(lambda: depot.wakes == 2)
    assert one.acquire(["a"]) == (1,)
    assert depot.fetched == ["a", "a"]


def test_what_is_no_adapter_error_becomes_one(residency: Make, depot: Depot) -> None:
    one = residency(1)
    depot.errors["a"] = ValueError("odd bytes")
    assert one.acquire(["a"]) is None
    depot.until(lambda: depot.wakes)
    with pytest.raises(AdapterBroken, match="odd bytes"):
        one.acquire(["a"])


def test_a_broken_one_is_told_though_the_slots_are_in_use(residency: Make, depot: Depot) -> None:
    one = residency(1)
    acquired(one, depot, "a")
    depot.errors["b"] = AdapterBroken("b")
    one.prefetch(["b"])
    depot.until(lambda: depot.wakes == 2)
    with pytest.raises(AdapterBroken):
        one.acquire(["b"])


def test_a_broken_one_takes_its_companions_nowhere(residency: Make, depot: Depot) -> None:
    one = residency(2)
    depot.errors["b"] = AdapterBroken("b")
    assert one.acquire(["a", "b"]) is None
    depot.until(lambda: depot.wakes == 2)
    with pytest.raises(AdapterBroken):
        one.acquire(["a", "b"])
    assert (one.slots.num_pinned, one.slots.resident) == (0, ())
    assert one.acquire(["a"]) == (1,)


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), MemoryError(), KeyError("no such module")]
)
def test_half_an_adapter_never_answers(residency: Make, depot: Depot, error: Exception) -> None:
    one = residency(1)
    acquired(one, depot, "a")
    one.release(["a"])
    depot.place_error = error
    with pytest.raises(AdapterError, match="could not be placed"):
        acquired(one, depot, "b")
    assert one.slots.resident == ()
    assert (one.loads, one.evictions) == (1, 1)
    depot.place_error = None
    assert acquired(one, depot, "b") == (1,)
    assert depot.fetched == ["a", "b", "b"]


def test_one_that_cannot_be_placed_leaves_its_companion_unpinned(
    residency: Make, depot: Depot
) -> None:
    one = residency(2)
    acquired(one, depot, "a")
    depot.place_error = RuntimeError("full")
    with pytest.raises(AdapterBroken):
        acquired(one, depot, "a", "b")
    one.release(["a"])
    assert one.slots.num_pinned == 0


# ---- forgetting


def test_forgotten_on_its_way_it_does_not_arrive(residency: Make, depot: Depot) -> None:
    one, gate = residency(1), depot.hold("a")
    assert one.acquire(["a"]) is None
    depot.until(lambda: depot.fetched)
    one.forget("a")
    gate.set()
    depot.until(lambda: depot.wakes)
    # What landed is the old content; who asks now is asked to wait for the new.
    assert one.acquire(["a"]) is None
    depot.until(lambda: depot.wakes == 2)
    assert one.acquire(["a"]) == (1,)
    assert depot.fetched == ["a", "a"]


def test_forgotten_in_its_slot_the_slot_is_free(residency: Make, depot: Depot) -> None:
    one = residency(1)
    acquired(one, depot, "a")
    one.forget("a")
    assert one.slots.resident == ("a",)
    one.release(["a"])
    assert one.slots.resident == ()
    one.forget("never heard of")


# ---- fetching ahead


def test_what_was_fetched_ahead_needs_no_second_reading(residency: Make, depot: Depot) -> None:
    one = residency(2)
    one.prefetch(["a", "b"])
    depot.until(lambda: depot.wakes == 2)
    assert one.acquire(["b"]) == (1,)
    assert sorted(depot.fetched) == ["a", "b"]


def test_it_is_not_begun_twice_nor_for_what_is_in_a_slot(residency: Make, depot: Depot) -> None:
    one, gate = residency(2), depot.hold("b")
    acquired(one, depot, "a")
    for _ in range(3):
        one.prefetch(["a", "b"])
    gate.set()
    depot.until(lambda: depot.wakes == 2)
    one.prefetch(["a", "b"])
    assert depot.fetched == ["a", "b"]


def test_it_is_bounded_and_the_most_urgent_come_first(residency: Make, depot: Depot) -> None:
    one = residency(1)
    one.prefetch(list("abcdefgh"))
    ahead = 1 + FETCHERS
    depot.until(lambda: depot.wakes == ahead)
    for _ in range(3):
        one.prefetch(list("abcdefgh"))
    one.close()
    assert sorted(depot.fetched) == list("abcdefgh"[:ahead])


def test_the_first_in_the_queue_is_never_let_go_for_those_behind(
    residency: Make, depot: Depot
) -> None:
    """All slots in use and a queue of others: step after step nothing is read twice, and
    when the slot is free the first has it at once."""
    one = residency(1)
    acquired(one, depot, "busy")
    queue = list("abcdefgh")
    one.prefetch(queue)
    depot.until(lambda: depot.wakes == 2 + FETCHERS)
    for _ in range(5):
        one.prefetch(queue)
        assert [one.acquire([digest]) for digest in queue] == [None] * 8
    one.release(["busy"])
    one.prefetch(queue)
    assert one.acquire(["a"]) == (1,)
    assert sorted(depot.fetched) == ["a", "b", "busy", "c"]


def test_who_stands_further_back_takes_nothing_from_the_first(
    residency: Make, depot: Depot
) -> None:
    one = residency(1)
    one.prefetch(["a", "b", "c"])
    depot.until(lambda: depot.wakes == 3)
    assert one.acquire(["x"]) is None
    assert one.acquire(["a"]) == (1,)
    one.close()
    assert sorted(depot.fetched) == ["a", "b", "c"]
    assert depot.wakes == 3


def test_what_nobody_wants_any_more_makes_room(residency: Make, depot: Depot) -> None:
    one = residency(1)
    one.prefetch(["a", "b", "c"])
    depot.until(lambda: depot.wakes == 3)
    one.prefetch(["x", "y"])
    depot.until(lambda: {"x", "y"} <= set(depot.fetched))
    one.prefetch(["z"])
    assert acquired(one, depot, "z") == (1,)


def test_what_is_under_way_and_unwanted_is_called_off(residency: Make, depot: Depot) -> None:
    one = residency(2)
    gates = [depot.hold(digest) for digest in "ab"]
    one.prefetch(["a", "b", "c", "d"])
    depot.until(lambda: len(depot.fetched) == 2)
    # Two fetch, two have not begun: those two can still be taken back.
    one.prefetch(["x", "y"])
    for gate in gates:
        gate.set()
    assert acquired(one, depot, "x") == (1,)
    one.close()
    assert "c" not in depot.fetched and "d" not in depot.fetched


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
def test_fetching_steps_aside_for_the_steps(residency: Make, depot: Depot) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    acquired(residency(1), depot, "a")
    # 19 is the most that there is.
    assert depot.niceness == min(mine + NICENESS, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
