"""A whole engine over a toy model, and what it tells, for tests of its thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lorry.core import (
    Batch,
    EngineStats,
    Failure,
    FinishReason,
    Pooling,
    Request,
    RowResult,
    TokenEvent,
)
from lorry.engine.blocks import BlockPool
from lorry.engine.letters import Mailbox, Submit
from lorry.engine.limits import Limits
from lorry.engine.loop import Engine
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Scheduler
from lorry_adapters.lora.slot_table import SlotTable
from lorry_adapters.lora.weights import AdapterWeights
from support.engine_fakes import Gated, constraints_of, tokens_of
from support.patience import PATIENCE

BLOCK = 4


class Told:
    """What the engine has told, readable from the test's thread."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.changed = threading.Condition()

    def emit(self, events: list[TokenEvent]) -> None:
        assert events
        with self.changed:
            self.events += events
            self.changed.notify_all()

    def until(self, true: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, timeout=PATIENCE)

    def final(self, name: str) -> TokenEvent | None:
        finals = [e for e in self.events if e.request_id == name and e.finish]
        assert len(finals) <= 1
        if finals:
            assert [e for e in self.events if e.request_id == name][-1] is finals[0]
        return finals[0] if finals else None

    def wait_for_end(self, *names: str) -> None:
        self.until(lambda: all(self.final(name) for name in names))

    def answer(self, name: str) -> list[int]:
        return tokens_of(self.events, name)


class Poisoned(Gated):
    """Raises where a row has an adapter called `poison`, after it has written its cells."""

    def run(self, batch: Batch) -> list[RowResult]:
        digests = {self.digest_in(use.slot) for row in batch.rows for use in row.adapters}
        results = super().run(batch)
        if "poison" in digests:
            raise ArithmeticError("poisoned")
        return results


@dataclass
class House:
    engine: Engine
    scheduler: Scheduler
    residency: SlotResidency
    runner: Gated
    mailbox: Mailbox
    told: Told
    steps: list[int]
    broken: threading.Event
    fetch_errors: dict[str, Exception] = field(default_factory=dict)
    seen: list[EngineStats] = field(default_factory=list)

    def submit(self, *requests: Request) -> None:
        for one in requests:
            self.mailbox.put(Submit(one))


@contextmanager
def running_house() -> Iterator[House]:
    told, mailbox, broken = Told(), Mailbox(), threading.Event()
    errors: dict[str, Exception] = {}

    def fetch(digest: str) -> AdapterWeights:
        if digest in errors:
            raise errors[digest]
        return AdapterWeights(digest, {}, 0)

    slots = SlotTable(2)
    residency = SlotResidency(slots, fetch=fetch, place=lambda s, w: None, wake=mailbox.wake)
    runner = Poisoned(BLOCK, slots.digest_in)
    blocks = BlockPool(64, BLOCK)

    def path_of(digests: Sequence[str], _: Pooling | None) -> str | None:
        return "toy" if all(slots.slot_of(digest) is not None for digest in digests) else None

    prefixes = PrefixCache(blocks, path_of)
    scheduler = Scheduler(Limits(8, 32, 64), blocks, residency, prefixes)
    steps: list[int] = []
    engine = Engine(
        scheduler,
        residency,
        runner,
        mailbox,
        constraints_of(mailbox),
        emit=told.emit,
        on_step=lambda tokens, seconds: steps.append(tokens),
        on_broken=broken.set,
    )
    house = House(engine, scheduler, residency, runner, mailbox, told, steps, broken, errors)
    yield house
    if runner.gate is not None:
        runner.gate.release(1000)
    engine.stop()


def failure_of(event: TokenEvent | None) -> Failure:
    assert event is not None
    assert event.finish is FinishReason.ERROR
    assert event.failure is not None
    return event.failure
