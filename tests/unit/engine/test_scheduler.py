"""The scheduler's decisions one by one. What must hold over any order of events is in
`property/test_scheduler`."""

from dataclasses import replace

import pytest

from lorry.core import Drawn, Failure, FailureCode, FinishReason, Request, RowResult, TokenLogprob
from lorry.engine.scheduler import MAX_OVERTAKEN, Limits
from support.engine_fakes import (
    answer_of,
    prompt_logprobs_of,
    request,
)
from support.scheduling import BLOCK, Bench, commit_by_hand

# ---- the shape of a step


def test_a_request_runs_from_prompt_to_length() -> None:
    bench = Bench()
    asked = request("r", [5, 6, 7], 3)
    bench.add(asked)
    assert [bench.step() for _ in range(4)] == [{"r": 3}, {"r": 1}, {"r": 1}, {}]
    assert bench.answer("r") == answer_of(asked)
    assert bench.final("r").finish is FinishReason.LENGTH
    assert bench.pool.num_used == 0


def test_one_token_is_asked_for_and_one_comes() -> None:
    bench = Bench()
    bench.add(request("r", [5], 1))
    assert bench.step() == {"r": 1}
    assert (len(bench.answer("r")), bench.final("r").finish) == (1, FinishReason.LENGTH)


def test_end_of_text_stops_and_comes_with_the_final_event() -> None:
    free = answer_of(request("r", [5, 6], 8))
    bench = Bench()
    bench.add(request("r", [5, 6], 8, eos=[free[3]]))
    bench.finish()
    assert bench.answer("r") == free[: free.index(free[3]) + 1]
    assert bench.final("r").finish is FinishReason.STOP
    assert bench.final("r").drawn


def test_a_full_model_length_ends_the_answer() -> None:
    bench = Bench(length=6)
    bench.add(request("r", [5, 6, 7], 50))
    bench.finish()
    assert len(bench.answer("r")) == 3
    assert bench.final("r").finish is FinishReason.LENGTH


def test_a_long_prompt_goes_in_by_the_budget_and_answers_when_it_is_in() -> None:
    bench = Bench(seqs=4, tokens=4)
    asked = request("r", range(10), 2)
    bench.add(asked)
    steps = [bench.step(), bench.step()]
    assert bench.events == []
    assert [*steps, bench.step(), bench.step()] == [{"r": 4}, {"r": 4}, {"r": 2}, {"r": 1}]
    assert bench.answer("r") == answer_of(asked)


def test_streams_do_not_stall_behind_a_long_prompt() -> None:
    bench = Bench(seqs=3, tokens=4)
    bench.add(request("a", [1], 9), request("b", [2], 9))
    assert bench.step() == {"a": 1, "b": 1}
    bench.add(request("long", range(7), 2))
    assert bench.step() == {"a": 1, "b": 1, "long": 2}
    assert bench.step() == {"a": 1, "b": 1, "long": 2}


def test_a_younger_stream_comes_before_an_older_prompt() -> None:
    bench = Bench(seqs=2, tokens=3)
    bench.add(request("long", range(12), 2), request("short", [1], 9))
    assert [bench.step() for _ in range(4)] == [{"long": 3}] * 4
    assert bench.step() == {"long": 1, "short": 1}
    bench = Bench(seqs=2, tokens=4)
    bench.add(request("short", [1], 9))
    bench.step()
    bench.add(request("long", range(12), 2))
    assert [bench.step() for _ in range(4)] == [{"short": 1, "long": 3}] * 4


def test_first_come_first_served_up_to_the_row_limit() -> None:
    bench = Bench(seqs=2)
    bench.add(*(request(name, [1, 2], 2) for name in "abcd"))
    assert list(bench.step()) == ["a", "b"]
    assert list(bench.step()) == ["a", "b"]
    assert list(bench.step()) == ["c", "d"]


def test_the_budget_must_hold_every_row() -> None:
    with pytest.raises(AssertionError):
        Limits(max_num_seqs=9, max_num_batched_tokens=8, max_model_len=16)


# ---- memory


def test_nobody_overtakes_who_waits_for_memory() -> None:
    bench = Bench(blocks=4)
    bench.add(request("a", range(8), 4), request("big", range(12), 2), request("tiny", [1], 1))
    assert list(bench.step()) == ["a"]
    assert bench.scheduler.num_waiting == 2
    bench.finish()
    order = [name for step in bench.runner.batches for name, start, _ in step if start == 0]
    assert order == ["a", "big", "tiny"]


def test_the_youngest_makes_room_and_nobody_notices() -> None:
    bench = Bench(blocks=4)
    asked = [request(name, [i, 2, 3, 4], 10) for i, name in enumerate("ab")]
    bench.add(*asked)
    bench.finish()
    assert bench.scheduler.preemptions >= 1
    assert [bench.answer(name) for name in "ab"] == [answer_of(one) for one in asked]
    restarts = [row[:2] for step in bench.runner.batches[1:] for row in step if row[1] == 0]
    assert restarts == [("b", 0)]


def test_preempted_in_the_prompt_its_logprobs_are_collected_anew() -> None:
    bench = Bench(seqs=3, tokens=5, blocks=5)
    a = request("a", range(8), 9)
    b = request("b", range(20, 31), 3, prompt_logprobs=0)
    bench.add(a, b)
    assert [bench.step(), bench.step(), bench.step()] == [{"a": 5}, {"a": 3, "b": 2}, {"a": 1}]
    bench.finish()
    assert bench.scheduler.preemptions == 1
    (first, *rest) = [e for e in bench.events if e.request_id == "b"]
    assert first.prompt == prompt_logprobs_of(b)
    assert all(e.prompt == () for e in rest)
    assert bench.answer("b") == answer_of(b)


def test_preempted_it_lets_its_slot_go() -> None:
    bench = Bench(blocks=4, slots=2)
    bench.residency.arrived |= {"x", "y"}
    a = request("a", [1, 2, 3, 4], 10, [("x", 1.0)])
    bench.add(a, request("b", [5, 6, 7, 8], 9, [("y", 1.0)]))
    while not bench.scheduler.preemptions:
        bench.step()
    assert bench.residency.pins == {"x": 1, "y": 0}
    bench.finish()
    assert bench.residency.pins == {"x": 0, "y": 0}


def test_nobody_starves_though_others_keep_coming() -> None:
    """More arrive than can ever be served, memory is short, and rows are preempted all the
    time: whoever came first is still done first, or nearly so."""
    bench = Bench(seqs=3, tokens=6, blocks=6)
    arrived: list[Request] = []
    for step in range(240):
        for _ in range(1 + step % 2):
            name = f"r{len(arrived)}"
            arrived.append(request(name, range(1 + len(arrived) % 9), 4 + len(arrived) % 7))
            bench.add(arrived[-1])
        bench.step()
    assert bench.scheduler.preemptions > 20
    ended = [int(e.request_id[1:]) for e in bench.events if e.finish]
    assert len(ended) > 40
    # Only those that ran together may change places.
    for place, number in enumerate(ended):
        assert abs(place - number) < 3
    for number in ended:
        assert bench.answer(f"r{number}") == answer_of(arrived[number])


# ---- adapters


def test_a_scale_of_zero_is_the_base_model() -> None:
    bench = Bench()
    bench.add(request("r", [1], 1, [("gone", 0.0)]))
    assert bench.step() == {"r": 1}
    assert bench.answer("r") == answer_of(request("r", [1], 1))


def test_who_waits_for_an_adapter_lets_others_pass() -> None:
    bench = Bench()
    bench.add(request("cold", [1], 1, [("x", 1.0)]), request("base", [1], 1))
    assert bench.step() == {"base": 1}
    bench.residency.arrived.add("x")
    assert bench.step() == {"cold": 1}


def test_only_so_many_pass() -> None:
    bench = Bench(seqs=4, slots=1)
    bench.residency.arrived |= {"hot", "cold"}
    bench.add(request("hot", [1], 3, [("hot", 1.0)]))
    bench.step()
    bench.add(request("cold", [1], 1, [("cold", 1.0)]))
    for i in range(300):
        bench.add(request(f"hot{i}", [1], 3, [("hot", 1.0)]))
        bench.step()
        if bench.answer("cold"):
            break
    started = {name for step in bench.runner.batches for name, start, _ in step if start == 0}
    assert len(started - {"hot", "cold"}) == MAX_OVERTAKEN


def test_a_broken_adapter_ends_its_request_and_no_other() -> None:
    bench = Bench()
    bench.residency.broken.add("x")
    bench.add(request("bad", [1], 1, [("x", 1.0)]), request("good", [1], 1))
    assert bench.step() == {"good": 1}
    final = bench.final("bad")
    assert final.finish is FinishReason.ERROR
    assert final.failure == Failure(FailureCode.ADAPTER_BROKEN, "x is broken")


def test_adapters_of_the_first_in_the_queue_are_fetched_ahead_in_order() -> None:
    bench = Bench(seqs=1)
    bench.add(*(request(f"r{i}", [1], 2, [(f"d{i}", 1.0)]) for i in range(12)))
    bench.step()
    assert bench.residency.wanted == [tuple(f"d{i}" for i in range(8))]


def test_two_names_of_one_content_are_two_pins() -> None:
    bench = Bench()
    bench.residency.arrived.add("x")
    asked = request("r", [1, 2], 3, [("x", 1.0), ("x", 0.5)])
    bench.add(asked)
    bench.finish()
    assert bench.answer("r") == answer_of(asked)
    assert bench.residency.pins == {"x": 0}


# ---- endings from outside


def test_cancelled_while_it_waits_and_while_it_runs() -> None:
    bench = Bench(seqs=1)
    bench.add(request("runs", [1], 9), request("waits", [1], 9))
    bench.step()
    for name in ("waits", "runs"):
        bench.scheduler.cancel(name)
    bench.events += bench.scheduler.take_events()
    assert bench.final("runs").finish is bench.final("waits").finish is FinishReason.CANCELLED
    assert bench.step() == {}
    assert bench.pool.num_used == 0


def test_cancelled_during_a_step_its_token_is_dropped() -> None:
    bench = Bench()
    bench.add(request("a", [1], 9), request("b", [2], 9))
    batch = bench.scheduler.schedule()
    assert batch is not None
    results = bench.runner.run(batch)
    bench.scheduler.cancel("a")
    commit_by_hand(bench, batch, results)
    assert bench.answer("a") == []
    assert len(bench.answer("b")) == 1


def test_failing_all_ends_all() -> None:
    bench = Bench(seqs=1)
    bench.add(request("a", [1], 9), request("b", [1], 9))
    bench.step()
    failure = Failure(FailureCode.ENGINE_FAILED)
    bench.scheduler.fail_all(failure)
    bench.events += bench.scheduler.take_events()
    assert bench.final("a").failure == bench.final("b").failure == failure
    assert bench.scheduler.num_requests == 0


# ---- several tokens from one step


@pytest.mark.parametrize(
    ("most", "ends", "taken", "finish"),
    [
        (9, (), [7, 8, 9], None),
        (2, (), [7, 8], FinishReason.LENGTH),
        (9, (8,), [7, 8], FinishReason.STOP),
        (3, (9,), [7, 8, 9], FinishReason.STOP),
    ],
)
def test_a_step_may_yield_several_tokens(
    most: int, ends: tuple[int, ...], taken: list[int], finish: FinishReason | None
) -> None:
    bench = Bench()
    bench.add(request("r", [1, 2], most, eos=ends))
    batch = bench.scheduler.schedule()
    assert batch is not None
    bench.runner.run(batch)
    drawn = tuple(Drawn(TokenLogprob(token, -1.0)) for token in (7, 8, 9))
    commit_by_hand(bench, batch, [RowResult(drawn)])
    (event,) = bench.events
    assert [one.token.token_id for one in event.drawn] == taken
    assert event.finish is finish
    if finish is None:
        # Only the prompt is in the cache: the next step computes the tokens as well.
        assert bench.step() == {"r": 3}


# ---- numbers that are none


@pytest.mark.parametrize("where", ["token", "prompt"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_not_a_number_is_an_error_of_its_own_request(where: str, value: float) -> None:
    bench = Bench()
    bench.residency.arrived.add("x")
    bad = request("bad", [3, 4], 9, [("x", 9.0)], prompt_logprobs=0)
    bench.add(bad, request("good", [1, 2], 5))
    batch = bench.scheduler.schedule()
    assert batch is not None
    results = bench.runner.run(batch)
    if where == "token":
        results[0] = replace(results[0], drawn=(Drawn(TokenLogprob(4, value)),))
    else:
        results[0] = replace(results[0], prompt=(TokenLogprob(4, value),))
    commit_by_hand(bench, batch, results)
    final = bench.final("bad")
    assert final.failure == Failure(FailureCode.OVERFLOW)
    bench.finish()
    assert len(bench.answer("good")) == 5


# ---- from outside


def test_the_snapshot_tells_who_runs_and_who_waits() -> None:
    bench = Bench(seqs=1, blocks=8)
    bench.residency.arrived |= {"x", "y"}
    bench.add(request("a", range(5), 2, [("x", 1.0)]), request("b", [1], 2, [("y", 1.0)]))
    bench.step()
    stats = bench.scheduler.stats()
    assert (stats.running, stats.waiting) == (1, 1)
    assert (stats.running_adapters, stats.waiting_adapters) == (("name-x",), ("name-y",))
    assert (stats.kv_blocks_used, stats.kv_blocks_total, stats.kv_block_size) == (2, 8, BLOCK)
