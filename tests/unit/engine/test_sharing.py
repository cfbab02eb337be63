"""Callers beside each other: whose request is next, and who gives way to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from lorry.core import Request
from lorry.engine.scheduler import MAX_OVERTAKEN, OUTWEIGHED
from lorry.engine.service import ANSWER, PROMPT
from support.engine_fakes import Adapters, answer_of, request
from support.scheduling import Bench


def asks(
    caller: str,
    names: Sequence[str],
    new: int = 4,
    prompt: Sequence[int] = (1, 2, 3),
    **more: Adapters,
) -> list[Request]:
    return [request(name, prompt, new, caller=caller, **more) for name in names]


def order(bench: Bench) -> list[str]:
    """Requests by their first row, those that began together in their rows' order."""
    started = [name for step in bench.runner.batches for name, start, _ in step if start == 0]
    return list(dict.fromkeys(started))


def test_the_next_one_is_of_the_caller_that_was_served_least() -> None:
    bench = Bench(seqs=4)
    bench.add(
        *asks("a", ["a1", "a2", "a3", "a4", "a5"]), *asks("b", ["b1", "b2"]), *asks("c", ["c1"])
    )
    assert list(bench.step()) == ["a1", "b1", "c1", "a2"]
    bench.finish()
    assert [name for name in order(bench) if name[0] == "a"] == ["a1", "a2", "a3", "a4", "a5"]


def test_a_weight_of_two_is_twice_the_service() -> None:
    bench = Bench(seqs=1)
    for index in range(40):
        bench.add(*asks("a", [f"a{index}"], 2), *asks("b", [f"b{index}"], 2, weight=2.0))
    while bench.scheduler.num_requests > 40:
        bench.step()
    ended = Counter(name[0] for name in order(bench)[:40])
    assert ended == {"a": 13, "b": 27} or ended == {"a": 14, "b": 26}


def test_tokens_count_and_not_requests() -> None:
    bench = Bench(seqs=1, length=200, blocks=200)
    for index in range(40):
        bench.add(*asks("a", [f"a{index}"], 30), *asks("b", [f"b{index}"], 9))
    while bench.scheduler.num_requests > 60:
        bench.step()
    ended = Counter(name[0] for name in order(bench)[:20])
    # 3 + 2 * 30 and 3 + 2 * 9: three times as much each.
    assert ended == {"a": 5, "b": 15}


def test_the_adapters_of_a_caller_are_served_alike() -> None:
    bench = Bench(seqs=1)
    bench.residency.arrived |= {"x", "y"}
    bench.add(*asks("a", [f"x{index}" for index in range(9)], adapters=[("x", 1.0)]))
    bench.add(*asks("a", ["y0", "y1"], adapters=[("y", 1.0)]), *asks("a", ["base"]))
    bench.finish()
    assert order(bench)[:6] == ["x0", "y0", "base", "x1", "y1", "x2"]


def test_who_comes_back_has_saved_nothing_up() -> None:
    bench = Bench(seqs=1)
    bench.add(*asks("b", ["b"]))
    bench.finish()
    bench.add(*asks("a", [f"a{index}" for index in range(20)]))
    for _ in range(30):
        bench.step()
    begun = len(order(bench))
    bench.add(*asks("b", [f"b{index}" for index in range(10)]))
    bench.finish()
    # Not all ten at once, for what it did not use: one after the other, in turn.
    after = [name[0] for name in order(bench)[begun:]]
    assert "bbb" not in "".join(after[:12])


def test_a_prompt_that_runs_again_after_a_preemption_is_not_charged_again() -> None:
    bench = Bench(blocks=6)
    bench.add(*asks("a", ["a1", "a2", "a3"], 9, [1, 2, 3, 4, 5]))
    bench.step()
    bench.add(*asks("b", ["fits"], 2, [1, 2, 3, 4, 5, 6, 7]))
    bench.finish()
    assert bench.scheduler.preemptions
    assert bench.scheduler._waiting._served["a"] == 3 * (5 * PROMPT + 9 * ANSWER)


def test_one_caller_alone_is_served_in_order_and_nobody_gives_way() -> None:
    bench = Bench(seqs=2)
    names = [f"a{index}" for index in range(7)]
    bench.add(*asks("a", names))
    bench.finish()
    assert order(bench) == names
    assert bench.scheduler.preemptions == 0


@pytest.mark.parametrize("tokens", [4, 64])
def test_the_request_of_another_does_not_wait_behind_sixty_four(tokens: int) -> None:
    """Where the rows alone take the whole step, too: who gives way leaves its token."""
    bench = Bench(seqs=4, tokens=tokens, length=64)
    bench.add(*asks("a", [f"a{index}" for index in range(64)], 20))
    for _ in range(6):
        bench.step()
    alone, other = bench.scheduler.num_running, asks("b", ["b"], 5, [7])
    assert alone == 4
    bench.add(*other)
    rows = [bench.step() for _ in range(5)]
    assert all("b" in step for step in rows)
    assert bench.answer("b") == answer_of(other[0])
    assert bench.scheduler.preemptions == 1
    # Who gave way, the youngest, is the next of its caller, and its answer is what it was.
    assert "a3" not in rows[0]
    assert "a3" in bench.step()
    bench.finish()
    for one in asks("a", [f"a{index}" for index in range(64)], 20):
        assert bench.answer(one.id) == answer_of(one)


def test_nobody_gives_way_to_who_would_have_more_then() -> None:
    bench = Bench(seqs=2)
    bench.add(*asks("a", ["a"], 9), *asks("b", ["b"], 9))
    bench.step()
    bench.add(*asks("c", ["c"], 9), *asks("a", ["a2"], 9))
    bench.step()
    assert bench.scheduler.preemptions == 0
    bench.finish()
    assert order(bench) == ["a", "b", "c", "a2"]


def test_blocks_are_given_up_for_another_caller_only_if_that_is_enough() -> None:
    bench = Bench(blocks=6)
    bench.add(*asks("a", ["a1", "a2", "a3"], 2, [1, 2, 3, 4, 5]))
    assert list(bench.step()) == ["a1", "a2", "a3"]
    # Five blocks: two rows may be sent away, which frees four.
    bench.add(*asks("b", ["large"], 2, range(17)))
    bench.step()
    assert bench.scheduler.preemptions == 0
    bench.finish()

    bench = Bench(blocks=6)
    bench.add(*asks("a", ["a1", "a2", "a3"], 9, [1, 2, 3, 4, 5]))
    bench.step()
    bench.add(*asks("b", ["fits"], 2, [1, 2, 3, 4, 5, 6, 7]))
    assert list(bench.step()) == ["a1", "a2", "fits"]


def test_a_decode_without_a_block_sends_the_youngest_of_the_busiest_away() -> None:
    bench = Bench(blocks=4)
    bench.add(*asks("a", ["a1", "a2"], 10, [1, 2]))
    bench.step()
    bench.add(*asks("b", ["b"], 10, [1, 2]))
    while not bench.scheduler.preemptions:
        rows = bench.step()
    assert list(rows) == ["a1", "b"]
    bench.finish()


def test_two_long_prompts_share_a_step_and_one_has_all_of_it() -> None:
    bench = Bench(seqs=4, tokens=8)
    bench.add(*asks("a", ["a"], 2, range(30)))
    assert bench.step() == {"a": 8}
    bench.add(*asks("b", ["b"], 2, range(6)))
    assert bench.step() == {"a": 4, "b": 4}
    assert bench.step() == {"a": 4, "b": 2}
    assert bench.step() == {"a": 7, "b": 1}


def test_many_long_prompts_are_a_small_part_of_the_steps_of_a_lighter_caller() -> None:
    bench = Bench(seqs=4, tokens=64, blocks=200, length=200)
    bench.add(*asks("a", ["a1", "a2", "a3", "a4"], 9, range(100)))
    bench.step()
    assert bench.step() == {"a1": 36, "a2": 28}
    assert bench.step() == {"a1": 1, "a2": 63}
    bench.add(*asks("b", ["b"], 5))
    # An eighth of what the decodes leave, from the step on in which the other begins.
    assert bench.step() == {"a1": 1, "a2": 7, "b": 3}
    # One more than the other has is not too many yet.
    assert bench.step() == {"a1": 1, "a2": 2, "a3": 60, "b": 1}
    while len(bench.answer("b")) < 5:
        assert bench.step() == {"a1": 1, "a2": 1, "a3": 7, "b": 1}
    # Alone it has all of the step again.
    assert bench.step()["a3"] > 7
    bench.finish()
    for one in asks("a", ["a1", "a2", "a3", "a4"], 9, range(100)):
        assert bench.answer(one.id) == answer_of(one)


def test_callers_with_a_request_each_hold_no_prompt_back() -> None:
    bench = Bench(seqs=3, tokens=32)
    bench.add(*asks("a", ["a"], 9), *asks("b", ["b"], 9), *asks("c", ["c"], 9, range(40)))
    bench.add(*asks("d", ["d"], 9))
    assert bench.step() == {"a": 3, "b": 3, "c": 26}
    assert bench.step() == {"a": 1, "b": 1, "c": 14}


def test_others_pass_who_waits_for_an_adapter_less_often_where_they_have_more() -> None:
    bench = Bench(seqs=4, slots=1)
    bench.residency.arrived |= {"hot", "cold"}
    bench.add(*asks("a", ["first", "second"], 3, [1], adapters=[("hot", 1.0)]))
    bench.step()
    bench.add(*asks("b", ["cold"], 1, [1], adapters=[("cold", 1.0)]))
    for index in range(200):
        bench.add(*asks("a", [f"hot{index}"], 3, [1], adapters=[("hot", 1.0)]))
        bench.step()
        if bench.answer("cold"):
            break
    passed = set(order(bench)) - {"first", "second", "cold"}
    assert len(passed) == MAX_OVERTAKEN // OUTWEIGHED


def test_nobody_starves_while_one_caller_keeps_coming() -> None:
    """Every other caller, each with one request, is served in a few steps of its own."""
    bench = Bench(seqs=3, tokens=12, blocks=12)
    waited: dict[str, int] = {}
    for step in range(300):
        bench.add(*asks("flood", [f"f{step}x{index}" for index in range(2)], 9))
        if step % 10 == 5:
            bench.add(*asks(f"caller {step}", [f"r{step}"], 3))
            waited[f"r{step}"] = step
        bench.step()
        for name in [name for name in waited if len(bench.answer(name)) == 3]:
            assert step - waited.pop(name) < 10
    assert len(waited) <= 1
    # And the flood goes on, from its first to its last.
    ended = [e.request_id for e in bench.events if e.finish and e.request_id[0] == "f"]
    assert len(ended) > 30
    assert ended[0].startswith("f0x")
