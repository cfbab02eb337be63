"""The engine's thread: what it owes every request, whatever raises."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from lorry.core import Batch, EngineStats, FinishReason, Request, RowResult, TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.loop import MAX_FAILURES, Cancel, Engine, Forget, Mailbox, Submit
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Limits, Scheduler
from lorry.errors import GenerationFailed
from lorry_adapters.errors import AdapterBroken
from lorry_adapters.lora.slots import SlotTable
from lorry_adapters.lora.weights import AdapterWeights
from support.engine_fakes import Gated, answer_of, counted_lease, request
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
        return [e.token.token_id for e in self.events if e.request_id == name and e.token]


class Poisoned(Gated):
    """Raises where a row has an adapter called `poison`."""

    def run(self, batch: Batch) -> list[RowResult]:
        digests = {self.digest_in(use.slot) for row in batch.rows for use in row.adapters}
        if "poison" in digests:
            raise ArithmeticError("poisoned")
        return super().run(batch)


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
    blamed: list[tuple[str, str]] = field(default_factory=list)
    seen: list[EngineStats] = field(default_factory=list)

    def submit(self, *requests: Request) -> None:
        for one in requests:
            self.mailbox.put(Submit(one))


@pytest.fixture
def house() -> Iterator[House]:
    told, mailbox, broken = Told(), Mailbox(), threading.Event()
    errors: dict[str, Exception] = {}

    def fetch(digest: str) -> AdapterWeights:
        if digest in errors:
            raise errors[digest]
        return AdapterWeights(digest, {}, 0)

    slots = SlotTable(2)
    residency = SlotResidency(slots, fetch=fetch, place=lambda s, w: None, wake=mailbox.wake)
    runner = Poisoned(BLOCK, slots.digest_in)
    scheduler = Scheduler(Limits(8, 32, 64), BlockPool(64, BLOCK), residency)
    steps: list[int] = []
    blamed: list[tuple[str, str]] = []

    def blame(digest: str, why: str) -> AdapterBroken:
        blamed.append((digest, why))
        return AdapterBroken(f"{digest}: {why}")

    engine = Engine(
        scheduler,
        residency,
        runner,
        mailbox,
        emit=told.emit,
        blame=blame,
        on_step=lambda tokens, seconds: steps.append(tokens),
        on_broken=broken.set,
    )
    house = House(engine, scheduler, residency, runner, mailbox, told, steps, broken, errors)
    house.blamed = blamed
    yield house
    if runner.gate is not None:
        runner.gate.release(1000)
    engine.stop()


def failure_of(event: TokenEvent | None) -> GenerationFailed:
    assert event is not None
    assert event.finish is FinishReason.ERROR
    assert isinstance(event.error, GenerationFailed)
    return event.error


# ---- the ordinary


def test_letters_in_events_out(house: House) -> None:
    house.engine.start()
    asked = [request(f"r{i}", [i, 1, 2], 5, [("x", 1.0), ("y", 0.5)][:i]) for i in range(3)]
    house.submit(*asked)
    house.told.wait_for_end("r0", "r1", "r2")
    for one in asked:
        assert house.told.answer(one.id) == answer_of(one)


def test_the_snapshot_is_as_new_as_the_events(house: House) -> None:
    emit, seen = house.told.emit, house.seen

    def note(events: list[TokenEvent]) -> None:
        seen.append(house.engine.stats)
        emit(events)

    house.engine._emit = note
    house.engine.start()
    house.submit(request("r", [1, 2, 3], 3, [("x", 1.0)]))
    house.told.wait_for_end("r")
    assert [(s.running, s.steps) for s in seen] == [(1, 1), (1, 2), (0, 3)]
    assert seen[0].resident == ("x",)
    assert seen[0].running_adapters == ("name-x",)
    assert (seen[-1].loads, seen[-1].slots_total, seen[-1].kv_blocks_used) == (1, 2, 0)
    assert house.steps == [3, 1, 1]


def test_cancelled_within_one_step(house: House) -> None:
    house.runner.gate = threading.Semaphore(0)
    house.engine.start()
    house.submit(request("r", [1], 50), request("other", [2], 5))
    house.runner.gate.release(2)
    house.told.until(lambda: len(house.told.answer("r")) >= 1)
    house.mailbox.put(Cancel("r"))
    # The step that waits at the gate may still have it; the next one may not.
    house.runner.gate.release(50)
    house.told.wait_for_end("r", "other")
    final = house.told.final("r")
    assert final is not None and final.finish is FinishReason.CANCELLED
    assert len(house.told.answer("r")) <= 3
    rows = [[name for name, _, _ in batch] for batch in house.runner.batches]
    with_it = [i for i, names in enumerate(rows) if "r" in names]
    assert len(with_it) <= 3
    house.mailbox.put(Cancel("r"))
    house.mailbox.put(Cancel("never"))


def test_a_forgotten_adapter_leaves_its_slot(house: House) -> None:
    house.engine.start()
    house.submit(request("r", [1], 1, [("x", 1.0)]))
    house.told.wait_for_end("r")
    assert house.engine.stats.resident == ("x",)
    house.mailbox.put(Forget("x"))
    house.submit(request("s", [1], 1))
    house.told.wait_for_end("s")
    assert house.engine.stats.resident == ()


def test_an_adapter_that_cannot_be_read_is_its_requests_error(house: House) -> None:
    house.fetch_errors["x"] = AdapterBroken("odd")
    house.engine.start()
    held = counted_lease([("x", 1.0)])
    house.submit(request("bad", [1], 3, lease=held.lease), request("good", [1], 3))
    house.told.wait_for_end("bad", "good")
    final = house.told.final("bad")
    assert final is not None and isinstance(final.error, AdapterBroken)
    assert held.releases == [None]
    assert len(house.told.answer("good")) == 3
    assert not house.engine.broken


# ---- a run of the model that raises


def test_a_failing_step_ends_its_own_requests_and_no_others(house: House) -> None:
    held = counted_lease([])
    # By hand, so that the step in which it fails is a certain one.
    house.submit(request("in", [1], 9, lease=held.lease))
    house.runner.failing = RuntimeError("CUDA out of memory")
    house.engine.step()
    error = failure_of(house.told.final("in"))
    assert "RuntimeError" in error.message
    assert held.releases == [None]
    house.runner.failing = None
    house.submit(request("after", [1], 2))
    house.engine.step()
    house.engine.step()
    assert house.told.answer("after") == answer_of(request("", [1], 2))
    assert house.engine.stats.failed_steps == 1
    assert house.engine.stats.kv_blocks_used == 0
    assert not house.engine.broken


def test_who_waited_while_a_step_failed_still_gets_an_answer(house: House) -> None:
    house.submit(*(request(f"r{i}", [1], 2) for i in range(9)))
    house.runner.failing = ValueError()
    house.engine.step()
    house.runner.failing = None
    ended = [name for name in (f"r{i}" for i in range(9)) if house.told.final(name)]
    assert ended == [f"r{i}" for i in range(8)]
    house.engine.step()
    house.engine.step()
    assert len(house.told.answer("r8")) == 2


def test_too_many_failures_in_a_row_and_the_engine_says_so(house: House) -> None:
    house.runner.failing = RuntimeError()
    names = [f"r{i}" for i in range(8 * MAX_FAILURES + 5)]
    house.submit(*(request(name, [1], 2) for name in names))
    house.engine.start()
    house.told.wait_for_end(*names)
    assert house.broken.wait(PATIENCE)
    assert house.engine.broken
    assert house.engine.stats.failed_steps == MAX_FAILURES
    assert house.engine.stats.running == house.engine.stats.waiting == 0
    failure_of(house.told.final(names[-1]))
    assert not house.mailbox.offer(Submit(request("late")))


def test_failures_with_a_success_between_are_not_in_a_row(house: House) -> None:
    for i in range(2 * MAX_FAILURES):
        house.runner.failing = RuntimeError() if i % 2 == 0 else None
        house.submit(request(f"r{i}", [1], 1))
        house.engine.step()
    assert house.engine.stats.failed_steps == MAX_FAILURES
    house.runner.failing = None
    house.engine.start()
    house.submit(request("last", [1], 1))
    house.told.wait_for_end("last")
    assert not house.engine.broken


# ---- an adapter that makes it raise


def test_an_adapter_that_makes_a_step_fail_ends_its_own_requests_alone(house: House) -> None:
    others = [
        request("base", [1, 2], 4),
        request("x", [2, 3], 4, [("x", 1.0)]),
        request("base again", [3, 4], 4),
    ]
    held = counted_lease([("poison", 1.0)])
    house.submit(*others, request("poisoned", [1, 2], 4, lease=held.lease))
    house.engine.start()
    house.told.wait_for_end(*(one.id for one in others), "poisoned")
    for one in others:
        assert house.told.answer(one.id) == answer_of(one)
    final = house.told.final("poisoned")
    assert final is not None and isinstance(final.error, AdapterBroken)
    assert house.blamed == [("poison", "computing it failed (ArithmeticError)")]
    assert held.releases == [None]
    assert house.engine.stats.failed_steps == 1
    assert house.engine.stats.resident == ("x",)


def test_what_waits_for_a_guilty_adapter_ends_with_it(house: House) -> None:
    house.submit(*(request(f"p{i}", [1], 2, [("poison", 1.0)]) for i in range(12)))
    house.submit(request("base", [1], 2))
    house.engine.start()
    house.told.wait_for_end(*(f"p{i}" for i in range(12)), "base")
    assert all(isinstance(end.error, AdapterBroken) for end in house.told.events if end.error)
    assert house.told.answer("base") == answer_of(request("", [1], 2))
    assert house.engine.stats.failed_steps == 1


def test_guilty_adapters_never_stop_the_engine(house: House) -> None:
    house.engine.start()
    for i in range(5 * MAX_FAILURES):
        house.submit(request(f"p{i}", [1], 2, [("poison", 1.0)]))
        house.told.wait_for_end(f"p{i}")
    assert house.engine.stats.failed_steps == 5 * MAX_FAILURES
    house.submit(request("base", [1], 2))
    house.told.wait_for_end("base")
    assert house.told.answer("base") == answer_of(request("", [1], 2))
    assert not house.engine.broken


# ---- whatever else raises


class Saboteur:
    """Replaces a method by one that raises `times` times, then is itself again."""

    def __init__(self, owner: object, method: str, times: int = 1) -> None:
        self._real = getattr(owner, method)
        self.left = times
        setattr(owner, method, self)

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.left:
            self.left -= 1
            raise ZeroDivisionError("nobody expected this")
        return self._real(*args, **kwargs)


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        ("scheduler", "schedule"),
        ("scheduler", "commit"),
        ("scheduler", "_take_token"),
        ("scheduler", "stats"),
        ("residency", "acquire"),
        ("residency", "prefetch"),
        ("engine", "_on_step"),
    ],
)
def test_the_thread_outlives_a_mistake_of_our_own(house: House, owner: str, method: str) -> None:
    held = counted_lease([("x", 1.0)])
    house.submit(request("r", [1, 2], 3, lease=held.lease), request("s", [1, 2], 3))
    Saboteur(getattr(house, owner), method)
    house.engine.start()
    house.told.wait_for_end("r", "s")
    house.submit(request("after", [1, 2], 3, [("x", 1.0)]))
    house.told.wait_for_end("after")
    assert house.told.answer("after") == answer_of(request("", [1, 2], 3, [("x", 1.0)]))
    assert held.releases == [None]
    assert (house.engine.stats.running, house.engine.stats.kv_blocks_used) == (0, 0)
    assert house.engine.stats.failed_steps == 1
    assert house.residency.slots.num_pinned == 0
    assert not house.engine.broken


def test_a_request_that_makes_it_fail_each_time_does_not_take_the_server_along(
    house: House,
) -> None:
    schedule = house.scheduler.schedule

    def poisoned() -> Batch | None:
        if "poison" in house.scheduler._by_id:
            raise ZeroDivisionError("nobody expected this")
        return schedule()

    house.scheduler.schedule = poisoned  # type: ignore[method-assign]
    house.submit(request("poison"))
    house.engine.start()
    house.told.wait_for_end("poison")
    house.submit(request("after", [1, 2], 3))
    house.told.wait_for_end("after")
    assert len(house.told.answer("after")) == 3
    assert not house.engine.broken


def test_a_letter_that_fails_takes_no_other_with_it(house: House) -> None:
    Saboteur(house.residency, "forget")
    house.mailbox.put(Forget("x"))
    house.submit(request("r", [1, 2], 2))
    house.engine.start()
    house.told.wait_for_end("r")
    assert house.told.answer("r") == answer_of(request("", [1, 2], 2))


def test_mistakes_without_end_break_the_engine_and_everybody_is_told(house: House) -> None:
    Saboteur(house.scheduler, "schedule", times=10**9)
    house.submit(request("r"), request("s"))
    house.engine.start()
    house.told.wait_for_end("r", "s")
    failure_of(house.told.final("r"))
    assert house.broken.wait(PATIENCE)
    assert house.engine.broken


def test_even_an_untidy_end_is_told(house: House) -> None:
    """The run fails, and so does giving back what the request held."""
    house.runner.failing = RuntimeError()
    Saboteur(house.residency, "release", times=2)
    house.submit(*(request(name, [1], 3, [("x", 1.0)]) for name in "rst"))
    house.engine.start()
    house.told.wait_for_end("r", "s", "t")


# ---- the end


def test_stopping_tells_everybody(house: House) -> None:
    house.runner.gate = threading.Semaphore(0)
    house.engine.start()
    held = [counted_lease([]) for _ in range(9)]
    house.submit(*(request(f"r{i}", [1], 50, lease=one.lease) for i, one in enumerate(held)))
    house.runner.gate.release(2)
    house.told.until(lambda: house.told.events)
    stopper = threading.Thread(target=house.engine.stop)
    stopper.start()
    house.runner.gate.release(100)
    stopper.join(PATIENCE)
    assert not stopper.is_alive()
    for i, one in enumerate(held):
        assert "stopped" in failure_of(house.told.final(f"r{i}")).message
        assert one.releases == [None]
    assert not house.broken.is_set()


def test_a_letter_in_the_box_when_it_stops_is_answered_too(house: House) -> None:
    house.runner.gate = threading.Semaphore(0)
    house.engine.start()
    house.submit(request("r", [1], 50))
    # In its step it cannot close the box before the second letter is in.
    assert house.runner.entered.wait(PATIENCE)
    stopper = threading.Thread(target=house.engine.stop)
    stopper.start()
    house.submit(request("late", [1], 50))
    house.runner.gate.release(100)
    stopper.join(PATIENCE)
    failure_of(house.told.final("r"))
    failure_of(house.told.final("late"))


def test_a_box_that_is_closed_takes_nothing_and_says_so() -> None:
    mailbox = Mailbox()
    assert mailbox.offer(Cancel("a"))
    mailbox.close()
    assert not mailbox.offer(Cancel("b"))
    mailbox.put(Cancel("c"))
    assert mailbox.take() == [Cancel("a")]
