"""What the engine's thread owes every request, whatever raises."""

from __future__ import annotations

import pytest

from lorry.core import Batch, Failure, FailureCode
from lorry.engine.letters import Forget, Submit
from lorry.engine.loop import MAX_FAILURES
from support.engine_fakes import answer_of, request
from support.engine_thread import House, failure_of
from support.patience import PATIENCE

GUILTY = Failure(FailureCode.ADAPTER_FAILED, "ArithmeticError", digests=("poison",))
"""As `Poisoned` fails."""

# ---- a run of the model that raises


def test_a_failing_step_ends_its_own_requests_and_no_others(house: House) -> None:
    # By hand, so that the step in which it fails is a certain one.
    house.submit(request("in", [1], 9))
    house.runner.failing = RuntimeError("CUDA out of memory")
    house.engine.step()
    failure = failure_of(house.told.final("in"))
    assert failure == Failure(FailureCode.STEP_FAILED, "RuntimeError")
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
    house.submit(*others, request("poisoned", [1, 2], 4, [("poison", 1.0)]))
    house.engine.start()
    house.told.wait_for_end(*(one.id for one in others), "poisoned")
    for one in others:
        assert house.told.answer(one.id) == answer_of(one)
    assert failure_of(house.told.final("poisoned")) == GUILTY
    assert house.engine.stats.failed_steps == 1
    assert house.engine.stats.resident == ("x",)


def test_what_waits_for_a_guilty_adapter_ends_with_it(house: House) -> None:
    house.submit(*(request(f"p{i}", [1], 2, [("poison", 1.0)]) for i in range(12)))
    house.submit(request("base", [1], 2))
    house.engine.start()
    house.told.wait_for_end(*(f"p{i}" for i in range(12)), "base")
    for i in range(12):
        assert failure_of(house.told.final(f"p{i}")) == GUILTY
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
        ("scheduler", "_take_tokens"),
        ("scheduler", "stats"),
        ("residency", "acquire"),
        ("residency", "prefetch"),
        ("engine", "_on_step"),
    ],
)
def test_the_thread_outlives_a_mistake_of_our_own(house: House, owner: str, method: str) -> None:
    house.submit(request("r", [1, 2], 3, [("x", 1.0)]), request("s", [1, 2], 3))
    Saboteur(getattr(house, owner), method)
    house.engine.start()
    house.told.wait_for_end("r", "s")
    house.submit(request("after", [1, 2], 3, [("x", 1.0)]))
    house.told.wait_for_end("after")
    assert house.told.answer("after") == answer_of(request("", [1, 2], 3, [("x", 1.0)]))
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


# ---- what a failed step leaves in the prefix cache


def test_blocks_of_a_row_that_failed_are_found_by_nobody(house: House) -> None:
    """Its cells were written, by the last attempt even without its adapter; those of the rows
    beside it are found."""
    long = list(range(1, 14))
    house.engine.start()
    house.submit(
        request("bad", long, 2, [("poison", 1.0)]), request("good", [9, *long], 2, [("a", 1.0)])
    )
    house.told.wait_for_end("bad", "good")
    assert failure_of(house.told.final("bad")) == GUILTY
    assert house.scheduler.blocks.num_entered == 3
    # The same content without the poison: mended files.
    again = request("again", long, 2, [("poison", 1.0)])
    house.runner.run = super(type(house.runner), house.runner).run  # type: ignore[method-assign]
    house.submit(again, request("base", long, 2), request("next", [9, *long], 2, [("a", 1.0)]))
    house.told.wait_for_end("again", "base", "next")
    assert house.told.answer("again") == answer_of(again)
    assert house.told.answer("base") == answer_of(request("", long, 2))
    first = {event.request_id: event for event in reversed(house.told.events)}
    assert [first[name].cached for name in ("again", "base", "next")] == [0, 0, 13]


def test_what_a_removed_adapter_computed_is_freed(house: House) -> None:
    house.engine.start()
    house.submit(request("r", list(range(13)), 1, [("a", 1.0)]))
    house.told.wait_for_end("r")
    house.submit(request("base", list(range(13)), 1))
    house.told.wait_for_end("base")
    assert house.scheduler.blocks.num_entered == 6
    house.mailbox.put(Forget("a"))
    house.submit(request("after", [1], 1))
    house.told.wait_for_end("after")
    assert house.scheduler.blocks.num_entered == 3
