"""The engine's thread: letters in, events out, to the end."""

from __future__ import annotations

import threading

from lorry.core import Failure, FailureCode, FinishReason, TokenEvent
from lorry.engine.letters import Cancel, Forget, Mailbox
from lorry_adapters.errors import AdapterBroken
from support.engine_fakes import answer_of, request
from support.engine_thread import House, failure_of
from support.patience import PATIENCE


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
    house.submit(request("bad", [1], 3, [("x", 1.0)]), request("good", [1], 3))
    house.told.wait_for_end("bad", "good")
    failure = failure_of(house.told.final("bad"))
    assert failure == Failure(FailureCode.ADAPTER_BROKEN, "odd")
    assert len(house.told.answer("good")) == 3
    assert not house.engine.broken


def test_stopping_tells_everybody(house: House) -> None:
    house.runner.gate = threading.Semaphore(0)
    house.engine.start()
    house.submit(*(request(f"r{i}", [1], 50) for i in range(9)))
    house.runner.gate.release(2)
    house.told.until(lambda: house.told.events)
    stopper = threading.Thread(target=house.engine.stop)
    stopper.start()
    house.runner.gate.release(100)
    stopper.join(PATIENCE)
    assert not stopper.is_alive()
    for i in range(9):
        assert failure_of(house.told.final(f"r{i}")) == Failure(FailureCode.ENGINE_STOPPED)
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
