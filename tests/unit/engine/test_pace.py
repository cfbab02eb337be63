"""Steps that take about a given time, with seconds from a formula instead of a clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from lorry.core import Batch, Row
from lorry.engine import loop
from lorry.engine.limits import Limits
from lorry.engine.pace import FIRST, LEAST, Pace
from support.engine_fakes import answer_of, request
from support.engine_thread import House
from support.scheduling import Bench, commit_by_hand

TARGET = 0.1


@dataclass
class Machine:
    """A step reads the weights, then each token takes its time, and attention its own."""

    weights: float = 0.004
    token: float = 0.0005
    key: float = 0.0
    """Seconds for each token and key."""
    steps: list[tuple[int, float]] = field(default_factory=list)
    """Prompt tokens and seconds."""

    def run(self, batch: Batch) -> float:
        seconds = self.weights
        for row in batch.rows:
            end = row.start + len(row.token_ids)
            keys = (row.start + end) / 2 * len(row.token_ids)
            seconds += self.token * len(row.token_ids) + self.key * keys
        prompts = sum(len(row.token_ids) for row in batch.rows if len(row.token_ids) > 1)
        self.steps.append((prompts, seconds))
        return seconds


def chunk(count: int, start: int = 0) -> Row:
    return Row("", range(count), start, range(1), (), None)


def read(pace: Pace, machine: Machine, length: int, *, decoding: int = 0, most: int = 512) -> None:
    """Read a prompt in steps, beside rows that decode."""
    done = 0
    while done < length:
        count = min(pace.limit(most, [done], decoding > 0), length - done)
        batch = Batch((*[chunk(1, 50)] * decoding, chunk(count, done)))
        pace.learn(batch, machine.run(batch))
        done += count


def test_without_a_target_nothing_is_limited() -> None:
    pace = Pace(None)
    read(pace, Machine(token=1.0), 2000)
    assert pace.limit(512, [0], True) == 512


def test_it_begins_carefully_and_then_takes_the_time_it_has() -> None:
    machine = Machine()
    read(Pace(TARGET), machine, 4000)
    assert machine.steps[0][0] == FIRST
    # (100 - 4) / 0.5 tokens; what is left at the end is less.
    assert {count for count, _ in machine.steps[5:-1]} <= set(range(189, 196))


def test_the_farther_the_fewer() -> None:
    machine, pace = Machine(key=2e-7), Pace(TARGET)
    read(pace, machine, 16000)
    counts, seconds = zip(*machine.steps, strict=True)
    assert counts[-2] < counts[10] / 3
    assert max(seconds) < 1.2 * TARGET
    assert sum(seconds[4:-1]) / len(seconds[4:-1]) == pytest.approx(TARGET, rel=0.1)
    # The next prompt begins where the first one did, with what it has taught.
    assert pace.limit(512, [100], False) == pytest.approx(counts[3], rel=0.25)


def test_rows_that_decode_take_theirs_first() -> None:
    machine, pace = Machine(), Pace(TARGET)
    for _ in range(5):
        batch = Batch((chunk(1, 50),) * 8)
        pace.learn(batch, 0.05)
    machine.weights = 0.05
    read(pace, machine, 3000, decoding=8)
    assert {count for count, _ in machine.steps[5:-1]} <= set(range(89, 96))


def test_a_slower_machine_is_noticed() -> None:
    machine, pace = Machine(), Pace(TARGET)
    read(pace, machine, 2000)
    machine.token *= 4
    read(pace, machine, 2000)
    assert machine.steps[-2][1] == pytest.approx(TARGET, rel=0.1)


def test_a_short_end_of_a_prompt_teaches_little() -> None:
    machine, pace = Machine(weights=0.02), Pace(TARGET)
    read(pace, machine, 2000)
    before = pace.limit(512, [0], False)
    pace.learn(Batch((chunk(2),)), machine.run(Batch((chunk(2),))))
    assert pace.limit(512, [0], False) > 0.75 * before


@pytest.mark.parametrize("seconds", [0.0, 1e-12, 1000.0])
def test_odd_clocks_leave_a_sensible_limit(seconds: float) -> None:
    pace = Pace(TARGET)
    for _ in range(3):
        pace.learn(Batch((chunk(100),)), seconds)
        pace.learn(Batch((chunk(1),)), seconds)
    for decodes in (False, True):
        assert LEAST <= pace.limit(512, [0], decodes) <= 512
    assert pace.limit(8, [0], True) <= 8


def test_the_scheduler_asks_it() -> None:
    """Chunks have the length that it allows, decodes go on in every step, and answers are the
    same."""
    made = Bench(tokens=200, blocks=200, length=400)
    made.scheduler = type(made.scheduler)(
        Limits(8, 200, 400, max_step_time=TARGET), made.pool, made.residency
    )
    machine = Machine(token=0.002)
    other, long = request("other", [5], 40), request("long", [7] * 300, 3)
    made.add(other)
    for step in range(60):
        if step == 5:
            made.add(long)
        batch = made.scheduler.schedule()
        if batch is None:
            break
        results = made.runner.run(batch)
        made.scheduler.pace.learn(batch, machine.run(batch))
        commit_by_hand(made, batch, results)
    counts = [count for count, _ in machine.steps if count]
    assert counts[0] == FIRST
    assert len(counts) > 5 and set(counts[2:-1]) <= set(range(42, 51))
    beside = [step for step in made.runner.batches if any(name == "long" for name, *_ in step)]
    assert all("other" in {name for name, *_ in step} for step in beside[:5])
    assert made.answer("other") == answer_of(other)
    assert made.answer("long") == answer_of(long)


def test_the_engine_tells_it_what_a_step_took(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[int, float]] = []
    ticks = iter(range(1000))
    pace = house.scheduler.pace
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(
        pace, "learn", lambda batch, seconds: learned.append((batch.num_tokens, seconds))
    )
    house.submit(request("r", [1, 2, 3], 2))
    for _ in range(2):
        house.engine.step()
    assert learned == [(3, 1.0), (1, 1.0)]
