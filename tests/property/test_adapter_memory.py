"""The memory of all adapters: never above its limit, nothing left when everything has left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorry.adapter_needs import AdapterNeeds
from lorry.engine.residency import Accounts, SlotResidency
from lorry_adapters.errors import OutOfMemory
from lorry_adapters.lora.adapter_memory import HOST_CACHE, AdapterBytes, AdapterMemory
from lorry_adapters.lora.adapter_size import AdapterSize
from lorry_adapters.lora.slot_table import SlotTable
from lorry_adapters.registry.host_cache import HostCache

LIMIT = 100
FILES = {"a": 5, "b": 10, "c": 20, "d": 30, "e": 45, "f": 70, "g": 120}
"""Bytes of each adapter's tensors."""
MADE = {"a": 5, "b": 0, "c": 40, "d": 10, "e": 45, "f": 40, "g": 0}
"""Bytes that are made of them for a slot: a surprise, as the header says half of it."""
DIGESTS = st.sampled_from(sorted(FILES))


class Inline:
    """An executor whose work is done when it is submitted."""

    def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*given))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None: ...


class House(RuleBasedStateMachine):
    """A host cache and slots over one memory, and requests that come, wait, run and end."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = AdapterMemory(LIMIT)
        self.cache = HostCache(
            lambda digest: SimpleNamespace(digest=digest, bytes=FILES[digest]),  # type: ignore
            max_bytes=60,
            memory=self.memory,
        )
        self.pinned: frozenset[str] = frozenset()
        self.slots: dict[int, str] = {}
        self.residency: SlotResidency[Any] = SlotResidency(
            SlotTable(3),
            fetch=self.cache.get,
            place=self.place,
            clear=lambda slot: self.slots.pop(slot),
            wake=lambda: None,
            pinned=lambda: self.pinned,
            accounts=Accounts(
                self.memory,
                AdapterNeeds(LIMIT, packed=False),
                lambda digest: AdapterSize(FILES[digest], tables=MADE[digest] // 8),
                lambda one: AdapterBytes(FILES[one.digest], deltas=MADE[one.digest]),
            ),
        )
        self.residency._pool = Inline()  # type: ignore[assignment]
        self.waiting: list[tuple[str, ...]] = []
        self.running: list[tuple[str, ...]] = []

    def place(self, slot: int, one: Any) -> AdapterBytes:
        self.slots[slot] = one.digest
        return AdapterBytes(FILES[one.digest], deltas=MADE[one.digest])

    def step(self) -> None:
        """As the scheduler does."""
        self.residency.prefetch([digest for one in self.waiting for digest in one])
        for one in list(self.waiting):
            try:
                slots = self.residency.acquire(one)
            except OutOfMemory as error:
                assert "of memory" in error.message and "100 B" in error.message
                assert sum(FILES[d] + MADE[d] for d in set(one)) > LIMIT
                self.waiting.remove(one)
                continue
            if slots is not None:
                assert [self.slots[slot] for slot in slots] == list(one)
                self.waiting.remove(one)
                self.running.append(one)

    @rule(digests=st.lists(DIGESTS, min_size=1, max_size=2))
    def ask(self, digests: list[str]) -> None:
        self.waiting.append(tuple(digests))
        self.step()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.residency.release(one)
        self.step()

    @rule(pinned=st.frozensets(DIGESTS, max_size=3))
    def pin(self, pinned: frozenset[str]) -> None:
        self.pinned = pinned
        self.cache.pin(pinned)

    @rule(digest=DIGESTS)
    def remove(self, digest: str) -> None:
        if not any(digest in one for one in (*self.waiting, *self.running)):
            self.cache.discard(digest)
            self.residency.forget(digest)

    @invariant()
    def within_the_limit(self) -> None:
        assert self.memory.total <= LIMIT
        assert sum(self.memory.by_part().values()) == self.memory.total

    @invariant()
    def counts_what_is_there(self) -> None:
        for digest in self.slots.values():
            assert self.memory.of(digest) == AdapterBytes(FILES[digest], deltas=MADE[digest])
        alone = [d for d in self.cache.digests() if self.memory.of(d) is None]
        assert self.memory.by_part()[HOST_CACHE] == sum(FILES[d] for d in alone)

    @invariant()
    def runs_what_it_said(self) -> None:
        assert {d for one in self.running for d in one} <= set(self.slots.values())

    def teardown(self) -> None:
        # Whoever waits is served or refused when the others end: nobody waits for ever.
        for _ in range(2 * len(self.waiting) + 4):
            for one in self.running:
                self.residency.release(one)
            self.running = []
            self.step()
        assert not self.waiting
        for one in self.running:
            self.residency.release(one)
        for digest in FILES:
            self.cache.discard(digest)
            self.residency.forget(digest)
        assert self.memory.total == 0 and not self.slots


TestHouse = House.TestCase
TestHouse.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class Account(RuleBasedStateMachine):
    """The account alone against its rule: a content counts once."""

    @initialize(limit=st.integers(0, 60))
    def start(self, limit: int) -> None:
        self.memory = AdapterMemory(limit)
        self.placed: dict[str, AdapterBytes] = {}
        self.cached: dict[str, int] = {}

    def sum(self) -> int:
        total = sum(one.total for one in self.placed.values())
        return total + sum(
            max(0, size - self.placed.get(digest, AdapterBytes()).weights)
            for digest, size in self.cached.items()
        )

    @rule(digest=st.sampled_from("abc"), weights=st.integers(0, 30), deltas=st.integers(0, 30))
    def take(self, digest: str, weights: int, deltas: int) -> None:
        size, before = AdapterBytes(weights, deltas=deltas), dict(self.placed)
        least = self.sum()
        self.placed[digest] = size
        fits = self.sum() <= max(self.memory.limit, least)
        assert self.memory.take(digest, size) == fits
        if not fits:
            self.placed = before

    @rule(digest=st.sampled_from("abc"))
    def give_back(self, digest: str) -> None:
        self.memory.give_back(digest)
        self.placed.pop(digest, None)

    @rule(digest=st.sampled_from("abc"), size=st.integers(0, 30))
    def keep(self, digest: str, size: int) -> None:
        before, least = dict(self.cached), self.sum()
        self.cached[digest] = size
        fits = self.sum() <= max(self.memory.limit, least)
        assert self.memory.keep(digest, size) == fits
        if not fits:
            self.cached = before

    @rule(digest=st.sampled_from("abc"))
    def drop(self, digest: str) -> None:
        self.memory.drop(digest)
        self.cached.pop(digest, None)

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "memory"):
            assert self.memory.total == self.sum()


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=150, deadline=None)


def test_idle_slots_leave_before_those_of_pinned_adapters() -> None:
    house = House()
    for digest in "abd":
        house.waiting.append((digest,))
        house.step()
        house.residency.release((digest,))
    house.running = []
    house.pin(frozenset("a"))
    # 10 + 10 + 40 are in slots, and c needs 60: the two that nobody pinned are enough.
    house.waiting.append(("c",))
    house.step()
    house.step()
    assert set(house.slots.values()) == {"a", "c"}


def test_a_sum_that_never_fits_is_refused_by_its_numbers() -> None:
    house = House()
    for _ in range(4):
        try:
            assert house.residency.acquire(("e", "d")) is None
        except OutOfMemory as error:
            assert error.message.startswith("the sum of ")
            assert "130 B of memory" in error.message
            break
    else:
        pytest.fail("a sum of 130 bytes waits for 100")
    # Nothing is lost: another one is served.
    assert house.residency.acquire(("b",)) is None
    assert house.residency.acquire(("b",)) is not None
