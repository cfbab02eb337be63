import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lorry_adapters.lora.adapter_memory import AdapterBytes, AdapterMemory
from lorry_adapters.registry.host_cache import HostCache
from support.patience import PATIENCE, wait_until


class Disk:
    """Loads `<letter><bytes>` as something of that many bytes, and remembers each load."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.before: Callable[[str], None] = lambda digest: None

    def __call__(self, digest: str) -> Any:
        self.loads.append(digest)
        self.before(digest)
        return SimpleNamespace(digest=digest, bytes=int(digest[1:]))


@pytest.fixture
def disk() -> Disk:
    return Disk()


def held(cache: HostCache, *digests: str) -> set[str]:
    return {digest for digest in digests if digest in cache}


def test_the_least_recently_used_goes_first(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    for digest in ("a40", "b40", "a40", "c40"):
        assert cache.get(digest).digest == digest
    assert held(cache, "a40", "b40", "c40") == {"a40", "c40"}
    assert disk.loads == ["a40", "b40", "c40"]
    stats = cache.stats()
    assert (stats.entries, stats.bytes, stats.capacity_bytes) == (2, 80, 100)
    assert (stats.hits, stats.misses, stats.evictions) == (1, 3, 1)


def test_one_large_entry_evicts_as_many_as_it_needs(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    for digest in ("a30", "b30", "c30", "d60"):
        cache.get(digest)
    assert held(cache, "a30", "b30", "c30", "d60") == {"c30", "d60"}


def test_what_exceeds_the_budget_is_given_but_not_kept(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    cache.get("a40")
    assert cache.get("b101").bytes == 101
    assert held(cache, "a40", "b101") == {"a40"}
    assert cache.stats().evictions == 0


def test_the_count_limits_too(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100, max_entries=2)
    for digest in ("a1", "b1", "c1"):
        cache.get(digest)
    assert held(cache, "a1", "b1", "c1") == {"b1", "c1"}


def test_a_count_of_none_keeps_nothing(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100, max_entries=0)
    cache.get("a1")
    assert cache.stats().entries == 0


def test_pinned_stay_even_over_budget(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    cache.pin(frozenset({"a80", "b80"}))
    for digest in ("a80", "c10", "b80", "d10"):
        cache.get(digest)
    assert held(cache, "a80", "b80", "c10", "d10") == {"a80", "b80"}
    assert cache.stats().bytes == 160


def test_nothing_is_evicted_for_what_cannot_fit_beside_the_pinned(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    cache.pin(frozenset({"a60"}))
    for digest in ("a60", "b30", "c50"):
        cache.get(digest)
    assert held(cache, "a60", "b30", "c50") == {"a60", "b30"}


def test_unpinning_brings_the_cache_back_into_its_budget(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    cache.pin(frozenset({"a80", "b80"}))
    cache.get("a80")
    cache.get("b80")
    cache.pin(frozenset({"b80"}))
    assert held(cache, "a80", "b80") == {"b80"}
    cache.pin(frozenset())
    assert held(cache, "b80") == {"b80"}


def test_discarding(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    cache.get("a40")
    cache.discard("a40")
    cache.discard("never40")
    assert cache.stats().bytes == 0
    cache.get("a40")
    assert disk.loads == ["a40", "a40"]
    assert cache.stats().evictions == 0


def test_one_load_for_all_who_ask_meanwhile(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    loading, go_on = threading.Event(), threading.Event()

    def wait(digest: str) -> None:
        loading.set()
        assert go_on.wait(PATIENCE)

    disk.before = wait
    given: list[Any] = []
    threads = [threading.Thread(target=lambda: given.append(cache.get("a40"))) for _ in range(8)]
    threads[0].start()
    assert loading.wait(PATIENCE)
    for thread in threads[1:]:
        thread.start()
    # Another digest is not kept waiting by this load.
    disk.before = lambda digest: None
    cache.get("b40")
    wait_until(lambda: cache.stats().hits == 7)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert disk.loads == ["a40", "b40"]
    assert len(given) == 8
    assert len({id(weights) for weights in given}) == 1


def test_an_error_reaches_all_who_wait_and_is_not_remembered(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    loading, go_on = threading.Event(), threading.Event()

    def fail(digest: str) -> None:
        loading.set()
        assert go_on.wait(PATIENCE)
        raise OSError("cable out")

    disk.before = fail
    errors: list[OSError] = []

    def ask() -> None:
        try:
            cache.get("a40")
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    assert loading.wait(PATIENCE)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: cache.stats().hits == 2)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [str(error) for error in errors] == ["cable out"] * 3
    assert disk.loads == ["a40"]

    disk.before = lambda digest: None
    assert cache.get("a40").bytes == 40
    assert "a40" in cache


def test_a_discard_during_the_load_wins(disk: Disk) -> None:
    cache = HostCache(disk, max_bytes=100)
    disk.before = cache.discard
    assert cache.get("a40").bytes == 40
    assert cache.stats().entries == 0
    disk.before = lambda digest: None
    cache.get("a40")
    assert "a40" in cache


@pytest.fixture
def memory() -> AdapterMemory:
    return AdapterMemory(100)


@pytest.fixture
def sharing(disk: Disk, memory: AdapterMemory) -> HostCache:
    """Has two adapters. A slot holds the older one's tensors, so that dropping it frees nothing."""
    cache = HostCache(disk, max_bytes=1000, memory=memory)
    for digest in ("a40", "b40"):
        cache.get(digest)
    assert memory.take("a40", AdapterBytes(weights=40)) and memory.total == 80
    return cache


def test_a_slot_takes_nothing_from_the_cache_that_frees_nothing(
    sharing: HostCache, memory: AdapterMemory
) -> None:
    assert memory.take("c50", AdapterBytes(weights=50))
    assert held(sharing, "a40", "b40") == {"a40"}
    assert sharing.stats().evictions == 1 and memory.total == 90


def test_an_entry_replaces_nothing_in_the_cache_that_frees_nothing(
    sharing: HostCache, memory: AdapterMemory
) -> None:
    sharing.get("c50")
    assert held(sharing, "a40", "b40", "c50") == {"a40", "c50"}
    assert sharing.stats().evictions == 1 and memory.total == 90
