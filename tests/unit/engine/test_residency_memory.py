"""What leaves a slot, or its way there, is no longer counted. What a slot holds is."""

import threading
from collections.abc import Callable, Iterator

import pytest

from lorry.engine.residency import Accounts, SlotResidency
from lorry_adapters.errors import OutOfMemory
from lorry_adapters.lora.adapter_memory import AdapterBytes, AdapterMemory
from lorry_adapters.lora.slot_table import SlotTable
from support.patience import PATIENCE, wait_until

SIZE = AdapterBytes(weights=10)
LIMIT = 100


@pytest.fixture
def memory() -> AdapterMemory:
    return AdapterMemory(LIMIT)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def residency(memory: AdapterMemory, gate: threading.Event) -> Iterator[SlotResidency[str]]:
    """With one slot. Fetches wait for the gate."""

    def fetch(digest: str) -> str:
        assert gate.wait(PATIENCE)
        return digest

    one = SlotResidency(
        SlotTable(1),
        fetch=fetch,
        place=lambda slot, prepared: SIZE,
        wake=lambda: None,
        accounts=Accounts(memory, taken_by=lambda prepared: SIZE),
    )
    yield one
    gate.set()
    one.close()


def acquired(residency: SlotResidency[str], digest: str) -> Callable[[], object]:
    return lambda: residency.acquire([digest])


def test_what_another_adapter_evicts_though_there_is_memory(
    residency: SlotResidency[str], memory: AdapterMemory, gate: threading.Event
) -> None:
    gate.set()
    wait_until(acquired(residency, "a"))
    residency.release(["a"])
    assert memory.of("a") == SIZE
    wait_until(acquired(residency, "b"))
    assert memory.of("a") is None and memory.total == SIZE.total


def test_what_is_forgotten_while_it_is_read_counts_until_it_ends(
    residency: SlotResidency[str], memory: AdapterMemory, gate: threading.Event
) -> None:
    assert residency.acquire(["a"]) is None
    wait_until(lambda: memory.of("a") is not None)
    residency.forget("a")
    assert memory.of("a") is not None
    gate.set()
    wait_until(lambda: memory.of("a") is None)
    assert memory.total == 0


def test_what_it_takes_once_placed_counts(memory: AdapterMemory) -> None:
    placed = AdapterBytes(weights=10, deltas=25)
    residency = SlotResidency(
        SlotTable(1),
        fetch=lambda digest: digest,
        place=lambda slot, prepared: placed,
        wake=lambda: None,
        accounts=Accounts(memory, taken_by=lambda prepared: SIZE),
    )
    wait_until(acquired(residency, "a"))
    assert memory.of("a") == placed and memory.total == placed.total
    residency.close()


def test_nothing_leaves_its_slot_if_that_would_not_be_enough(memory: AdapterMemory) -> None:
    residency = SlotResidency(
        SlotTable(3),
        fetch=lambda digest: digest,
        place=lambda slot, prepared: SIZE,
        wake=lambda: None,
        accounts=Accounts(memory, taken_by=lambda prepared: SIZE),
    )
    for digest in ("growing", "idle", "busy"):
        wait_until(acquired(residency, digest))
    residency.release(["idle"])
    # Beside the busy one there is room for 90.
    with pytest.raises(OutOfMemory):
        residency.grow("growing", AdapterBytes(weights=10, deltas=LIMIT - 19))
    assert residency.slots.slot_of("idle") is not None and residency.evictions == 0
    assert memory.of("growing") == SIZE and memory.total == 3 * SIZE.total
    residency.grow("growing", AdapterBytes(weights=10, deltas=LIMIT - 20))
    assert residency.slots.slot_of("idle") is None and memory.total == LIMIT
    residency.close()
