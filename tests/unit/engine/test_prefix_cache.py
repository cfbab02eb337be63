"""The prefix cache with a toy model, whose cells say what they were computed of: a row that reads a
block which it would have computed otherwise fails."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from lorry.core import (
    Caching,
    Drawn,
    Failure,
    FailureCode,
    FinishReason,
    Pooling,
    RowResult,
    TokenLogprob,
)
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from support.engine_fakes import (
    CALLED,
    INVOCATION,
    PREFIX,
    PROMPT,
    VIRTUAL,
    answer_of,
    prompt_logprobs_of,
    request,
    tokens_of,
)
from support.prefixes import LONG, bench, cached, computed, first_row, one_by_one
from support.scheduling import BLOCK, Bench, commit_by_hand

# ---- what is found


def test_the_same_prompt_is_computed_once_and_nothing_is_copied() -> None:
    made, asked = bench(), request("first", LONG)
    one_by_one(made, asked)
    assert made.pool.num_used == 0
    made.add(request("second", LONG))
    batch = made.scheduler.schedule()
    assert batch is not None
    (row,) = batch.rows
    assert (row.start, list(row.token_ids)) == (12, LONG[12:])
    commit_by_hand(made, batch, made.runner.run(batch))
    made.finish()
    assert made.answer("second") == answer_of(asked)
    assert (cached(made, "first"), cached(made, "second")) == (0, 12)


@pytest.mark.parametrize(("length", "found"), [(1, 0), (4, 3), (5, 4), (8, 7), (12, 11), (13, 12)])
def test_the_last_token_is_always_computed(length: int, found: int) -> None:
    made = bench()
    one_by_one(made, request("first", LONG[:length]), request("second", LONG[:length]))
    assert cached(made, "second") == found


def test_the_next_turn_of_a_chat_finds_the_answer_too() -> None:
    made, asked = bench(), request("first", LONG, 11)
    one_by_one(made, asked)
    # The last token of an answer is never computed.
    one_by_one(made, request("second", [*LONG, *answer_of(asked), 1, 2, 3]))
    assert cached(made, "second") == len(LONG) + 11 - 1


def test_many_at_once_compute_it_once() -> None:
    made = bench(tokens=16, seqs=8)
    names = [f"r{index}" for index in range(8)]
    made.add(*(request(name, LONG, 2) for name in names))
    made.finish()
    prompts = sum(sum(computed(made, name)) for name in names) - len(names)
    # The first computes all of it. The second begins in the same step and leaves the rest out.
    assert prompts == len(LONG) + 3 + 1 + 6
    assert all(made.answer(name) == answer_of(request(name, LONG, 2)) for name in names)


def test_shared_blocks_are_taken_once() -> None:
    """Both run at once where two copies would not fit."""
    made = bench(blocks=6, seqs=2)
    one_by_one(made, request("first", LONG, 1))
    made.add(request("second", LONG, 4), request("third", LONG, 4))
    assert set(made.step()) == {"second", "third"}
    assert made.pool.num_used == 5
    made.finish()
    assert made.scheduler.preemptions == 0


def test_an_activated_adapter_shares_what_the_base_has_computed() -> None:
    prompt = [*LONG, *INVOCATION, 1, 2, 3]
    made, called = bench(), request("called", prompt, adapters=[(CALLED, 1.0)])
    one_by_one(made, request("base", LONG), called)
    assert cached(made, "called") == 13
    one_by_one(made, replace(called, id="again"), request("base again", [*LONG, 1, 2, 3]))
    assert cached(made, "again") == 16
    assert cached(made, "base again") == 13
    assert made.answer("again") == answer_of(called)


@pytest.mark.parametrize("kind", [PROMPT, PREFIX])
def test_virtual_tokens_are_found_with_the_rest_and_not_counted(kind: str) -> None:
    made, asked = bench(), request("first", LONG, adapters=[(kind, 1.0)])
    one_by_one(made, asked, replace(asked, id="second"))
    assert cached(made, "second") == len(LONG) - 1
    assert made.answer("second") == answer_of(asked)


def test_a_prefix_alone_is_no_hit() -> None:
    """It is written to the cache for each row that begins behind it."""
    made = bench()
    for name, prompt in (("first", [1, 2, 3, 4]), ("second", [4, 3, 2, 1])):
        one_by_one(made, request(name, prompt, adapters=[(PREFIX, 1.0)]))
    assert first_row(made, "second") == VIRTUAL[PREFIX] > BLOCK


# ---- what is not


def test_a_prompt_whose_logprobs_are_wanted_is_computed() -> None:
    made, plain = bench(), request("plain", LONG)
    asked = request("asked", LONG, prompt_logprobs=0)
    one_by_one(made, plain, asked, replace(plain, id="again"))
    (first, *_) = [event for event in made.events if event.request_id == "asked"]
    assert first.prompt == prompt_logprobs_of(asked)
    assert (cached(made, "asked"), cached(made, "again")) == (None, 12)


def test_a_request_can_stay_out() -> None:
    made = bench()
    out = request("out", LONG, caching=Caching(prompt=False))
    one_by_one(made, out)
    assert made.pool.num_entered == 0
    one_by_one(made, request("in", LONG), replace(out, id="out again"))
    assert (cached(made, "in"), cached(made, "out again")) == (0, None)


def test_without_a_cache_nothing_is_kept() -> None:
    made = Bench()
    one_by_one(made, request("first", LONG), request("second", LONG))
    assert made.pool.num_entered == 0
    assert cached(made, "second") is None


def test_what_a_removed_adapter_computed_is_freed() -> None:
    made = bench()
    one_by_one(made, request("a", LONG, 1, adapters=[("a", 1.0)]), request("base", LONG, 1))
    assert made.pool.num_entered == 6
    made.scheduler.prefixes.forget("a")
    assert made.pool.num_entered == 3
    one_by_one(made, request("again", LONG, adapters=[("a", 1.0)]))
    assert cached(made, "again") == 0


def test_the_least_recently_used_goes_first() -> None:
    made = bench(blocks=13)
    prompts = {name: [number] * 9 for number, name in enumerate("abcd")}
    for name in "abcd":
        one_by_one(made, request(f"{name}1", prompts[name], 1))
    # Each leaves two blocks and a half one: all four fit. Now `a` is the youngest.
    one_by_one(made, request("a2", prompts["a"], 1))
    one_by_one(made, request("e", [9] * 9, 1))
    one_by_one(made, request("a3", prompts["a"], 1), request("b2", prompts["b"], 1))
    assert (cached(made, "a2"), cached(made, "a3"), cached(made, "b2")) == (8, 8, 4)


# ---- preemption, failures, overflow


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    made = bench(blocks=8, seqs=2)
    old, young = request("old", [1] * 9, 12), request("young", [2] * 9, 12)
    made.add(old, young)
    made.finish()
    assert made.scheduler.preemptions > 0
    starts = [start for step in made.runner.batches for name, start, _ in step if name == "young"]
    restarts = [here for before, here in pairwise(starts) if here <= before]
    assert len(restarts) == made.scheduler.preemptions
    assert all(start > 0 for start in restarts)
    assert (made.answer("old"), made.answer("young")) == (answer_of(old), answer_of(young))
    # What it finds of itself is no prompt that somebody else has computed.
    assert cached(made, "young") == 0


def test_half_a_prompt_is_found_after_a_preemption() -> None:
    made = bench(blocks=8, seqs=4, tokens=8)
    made.add(request("old", [6], 6, caller="x"), request("big", [5] * 26, 2, caller="x"))
    made.step()
    made.step()
    made.add(request("other", [7] * 5, 2, caller="y"))
    made.finish()
    assert made.scheduler.preemptions == 1
    starts = [start for step in made.runner.batches for name, start, _ in step if name == "big"]
    assert starts[:3] == [0, 7, 14]
    assert made.answer("big") == answer_of(request("big", [5] * 26, 2))
    assert cached(made, "big") == 0


def test_a_step_that_failed_enters_nothing() -> None:
    made = bench()
    made.add(request("first", LONG))
    batch = made.scheduler.schedule()
    assert batch is not None
    made.scheduler.fail(["first"], Failure(FailureCode.STEP_FAILED))
    commit_by_hand(made, batch, made.runner.run(batch))
    assert (made.pool.num_entered, made.pool.num_used) == (0, 0)


def test_a_cancelled_prompt_keeps_what_was_computed() -> None:
    made = bench(tokens=8)
    made.add(request("first", LONG))
    made.step()
    made.scheduler.cancel("first")
    one_by_one(made, request("second", LONG))
    assert cached(made, "second") == 8


def test_numbers_that_are_not_finite_leave_nothing() -> None:
    """Neither what the step computed nor what it was computed from, which may be the reason."""
    made = bench(tokens=8, seqs=2)
    one_by_one(made, request("other", LONG[:5], 1))
    made.add(request("nan", LONG))
    made.step()
    assert made.pool.num_entered == 3
    batch = made.scheduler.schedule()
    assert batch is not None
    nan = RowResult((Drawn(TokenLogprob(1, math.nan)),))
    commit_by_hand(made, batch, [nan])
    assert made.final("nan").finish is FinishReason.ERROR
    assert (made.pool.num_entered, made.pool.num_used) == (0, 0)


@pytest.mark.parametrize("tokens", [3, 8])
def test_rows_of_another_path_are_not_entered(tokens: int) -> None:
    """A long prompt whose vector is wanted runs as the base's rows do, except its last part. Nor is
    a block entered that both have filled."""
    made = Bench(tokens=tokens, seqs=2, path_of=lambda digests, pooling: str(pooling))
    for name, prompt in (("long", LONG[: tokens + 2]), ("short", LONG[:8])):
        if name == "short":
            made.scheduler.limits = Limits(2, 8, 64)
        made.add(replace(request(name, prompt), pooling=Pooling.LAST))
        while made.scheduler.num_requests:
            batch = made.scheduler.schedule()
            assert batch is not None
            commit_by_hand(made, batch, [RowResult(vector=(1.0,))])
        assert made.pool.num_entered == {"long": 0, "short": 2}[name]


def test_every_reference_is_returned_after_a_storm() -> None:
    made = bench(blocks=12, seqs=6, tokens=16)
    requests = [
        request(f"r{n}", [n % 3] * (4 + n % 9), 1 + n % 7, [("a", 1.0)] if n % 4 == 0 else [])
        for n in range(60)
    ]
    for number, asked in enumerate(requests):
        made.add(asked)
        made.step()
        if number % 5 == 4:
            made.scheduler.cancel(requests[number - 2].id)
    made.finish()
    assert made.pool.num_used == 0
    everything: list[int] = []
    assert made.pool.grow(everything, 12 * BLOCK)
    for asked in requests:
        answer = made.answer(asked.id)
        assert answer == answer_of(asked)[: len(answer)]


def test_a_key_is_entered_once() -> None:
    pool, mine, theirs = BlockPool(4, BLOCK), [], []
    assert pool.grow(mine, BLOCK) and pool.grow(theirs, BLOCK)
    pool.enter(mine[0], b"key")
    pool.enter(theirs[0], b"key")
    assert pool.find([b"key"]) == mine
    assert pool.num_entered == 1


def test_events_carry_the_count_once() -> None:
    made = bench()
    one_by_one(made, request("first", LONG, 3))
    first, *others = [event for event in made.events if event.request_id == "first"]
    assert first.cached == 0
    assert [event.cached for event in others] == [None, None]
    assert len(tokens_of(made.events, "first")) == 3
