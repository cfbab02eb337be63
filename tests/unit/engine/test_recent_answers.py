"""Who drafts from whose answers, and how many are kept."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lorry.core import Caching, Failure, FailureCode, FinishReason
from lorry.engine import recent_answers
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from lorry.engine.recent_answers import MEMORY, PART, SETS, AnswerBook, RecentAnswers
from lorry.engine.scheduler import Scheduler
from lorry.engine.speculation import Speculation
from support.engine_fakes import ToyResidency, ToyRunner, answer_of, request, tokens_of

PROMPT = (5, 6, 7, 8)


class Served:
    """A scheduler that drafts whatever it can, with the toy model."""

    def __init__(self, *, per_caller: bool = False, suits: bool = True) -> None:
        limits, blocks = Limits(8, 64, 64), BlockPool(64, 4)
        residency = ToyResidency(2)
        residency.arrived |= {"a", "b"}
        self.book = AnswerBook(per_caller=per_caller)
        self.scheduler = Scheduler(
            limits,
            blocks,
            residency,
            speculation=Speculation(
                limits, blocks, always=True, fixed=1e9, suits=lambda _: suits, answers=self.book
            ),
        )
        self.runner = ToyRunner(4, residency.digest_in)
        self._number = 0

    def drafts(self, *, wants: bool | None = None, cancel: int = 0, **more: Any) -> int:
        """Answer a request, and return how many of its tokens came as drafts. `cancel`: it is
        cancelled after so many steps."""
        self._number += 1
        asked = replace(request(str(self._number), PROMPT, 12, **more), speculative=wants)
        self.scheduler.add(asked)
        events, steps = [], 0
        while self.scheduler.num_requests:
            steps += 1
            if steps == cancel:
                self.scheduler.cancel(asked.id)
                events += self.scheduler.take_events()
                break
            batch = self.scheduler.schedule()
            assert batch is not None
            events += self.scheduler.commit(batch, self.runner.run(batch))
        answer = tokens_of(events, asked.id)
        assert answer == answer_of(asked)[: len(answer)]
        if not cancel:
            assert events[-1].finish is FinishReason.LENGTH
        return sum(max(len(event.drawn) - 1, 0) for event in events)


A, B = [("a", 1.0)], [("b", 1.0)]


def test_the_same_answer_comes_as_drafts() -> None:
    made = Served()
    assert made.drafts(adapters=A) == 0
    # The first token is the prompt's, the last is drawn.
    assert made.drafts(adapters=A) == 10


Given = dict[str, Any]

APART: list[tuple[str, Given, Given]] = [
    ("adapter", {"adapters": A}, {"adapters": B}),
    ("base", {"adapters": A}, {}),
    ("sum", {"adapters": A}, {"adapters": [*A, *B]}),
    ("caller", {"caller": "x"}, {"caller": "y"}),
    ("salt", {"caching": Caching(salt="x")}, {"caching": Caching(salt="y")}),
    ("no salt", {"caching": Caching(salt="x")}, {}),
    ("reads none", {}, {"caching": Caching(prompt=False)}),
    ("leaves none", {"caching": Caching(prompt=False)}, {}),
    ("wants none", {"wants": False}, {}),
]


@pytest.mark.parametrize(("first", "second"), [c[1:] for c in APART], ids=[c[0] for c in APART])
def test_nobody_drafts_from_answers_that_are_not_his(
    first: Given, second: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the toy model would show it: each answers as the first one did."""
    monkeypatch.setattr("support.engine_fakes.next_token", lambda ids, _: hash(tuple(ids)) % 50)
    made = Served(per_caller=True)
    made.drafts(**first)
    assert made.drafts(**second) == 0
    if first.get("wants") is not False and first.get("caching") != Caching(prompt=False):
        assert made.drafts(**first) == 10
    same = RecentAnswers()
    monkeypatch.setattr(AnswerBook, "of", lambda *_: same)
    made = Served(per_caller=True)
    if first.get("wants") is not False:
        made.drafts(**first)
        assert made.drafts(**second) == 10


def test_callers_share_unless_they_must_not() -> None:
    """As the prefix cache."""
    for per_caller, expected in ((False, 10), (True, 0)):
        made = Served(per_caller=per_caller)
        made.drafts(caller="x")
        assert made.drafts(caller="y") == expected


def test_a_scale_is_nothing_to_a_draft() -> None:
    made = Served()
    made.drafts(adapters=A)
    made.drafts(adapters=[("a", 0.5)])
    assert made.drafts(adapters=[("a", 0.5)]) == 10


def test_what_a_removed_adapter_answered_is_dropped() -> None:
    made = Served()
    for adapters in (A, B, [*A, *B]):
        made.drafts(adapters=adapters)
    speculation = made.scheduler.speculation
    assert speculation is not None
    speculation.forget("a")
    assert [made.drafts(adapters=one) for one in (A, B, [*A, *B])] == [0, 10, 0]


def test_a_cancelled_answer_counts_and_a_failed_one_does_not() -> None:
    """A stop string is a cancellation."""
    made = Served()
    made.drafts(cancel=9)
    assert 4 < made.drafts() < 10
    made = Served()
    made.scheduler.add(request("failed", PROMPT, 12))
    for _ in range(9):
        batch = made.scheduler.schedule()
        assert batch is not None
        made.scheduler.commit(batch, made.runner.run(batch))
    made.scheduler.fail(["failed"], Failure(FailureCode.STEP_FAILED))
    assert made.drafts() == 0


def test_rows_without_drafts_leave_nothing() -> None:
    made = Served(suits=False)
    made.drafts()
    assert not made.book._sets


# ---- the room


def found(answers: RecentAnswers, tokens: Sequence[int]) -> bool:
    return answers.find(tokens)[2] == len(tokens)


def test_of_each_set_the_last_answers_are_kept() -> None:
    answers = RecentAnswers()
    for number in range(0, 10 * PART, 10):
        answers.enter(range(number, number + 9))
    kept = [n for n in range(0, 10 * PART, 10) if found(answers, range(n, n + 5))]
    assert kept == list(range(kept[0], 10 * PART, 10))
    assert PART <= 10 * len(kept) <= 2 * PART


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 5 * PART])
def test_of_a_long_answer_the_end_is_kept(size: int) -> None:
    answers = RecentAnswers()
    for _ in range(3):
        answers.enter(range(size))
        assert found(answers, range(size - 9, size - 1))
        assert len(answers._newer.tokens) + len(answers._older.tokens) <= 2 * (PART + 1)


def test_the_least_recently_used_set_goes_first() -> None:
    book = AnswerBook(per_caller=False)
    for number in range(SETS):
        book.enter(request("r", PROMPT), (str(number),), [1, 2, 3])
    book.of(request("r", PROMPT), ("0",))
    book.enter(request("r", PROMPT), ("new",), [1, 2, 3])
    assert len(book._sets) == SETS
    kept = {key[2][0] for key in book._sets}
    assert {"0", "new"} <= kept and "1" not in kept


def test_they_take_no_more_memory_than_is_said() -> None:
    """A share of them, of tokens that never repeat, which take most."""
    chance, sets = random.Random(1), SETS // 8
    book = AnswerBook(per_caller=False)
    answers = [[chance.randrange(1 << 18) for _ in range(100)] for _ in range(60)]
    tracemalloc.start()
    for number in range(sets):
        for answer in answers:
            book.enter(request("r", PROMPT), (str(number),), [*map(int, map(str, answer))])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert MEMORY / 16 < taken < MEMORY / 8


def test_only_the_end_of_a_prompt_is_kept() -> None:
    book = AnswerBook(per_caller=False)
    asked = request("r", range(100, 140))
    book.enter(asked, (), [1, 2, 3])
    answers = book.of(asked, ())
    assert answers is not None
    assert found(answers, [138, 139, 1]) and not found(answers, [120, 121])
    assert recent_answers.BEFORE == 8
