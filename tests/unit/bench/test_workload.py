from __future__ import annotations

import random
import statistics

import pytest

from lorry.bench import arrivals, preset, workload
from lorry.bench.popularity import parse
from lorry.bench.workload import Span, WorkloadRow


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_variation_asked_for(cv: float) -> None:
    dice = random.Random(2)
    gaps = [arrivals.gap(4.0, cv, dice) for _ in range(40_000)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(0.25 * cv, rel=0.08, abs=1e-12)


def test_arrivals_are_in_order() -> None:
    times = arrivals.times(100, 10, 2.0, random.Random(3))
    assert times == sorted(times) and len(times) == 100


ROW = WorkloadRow(
    "row",
    requests=40,
    rate=2.0,
    adapters=4,
    popularity=parse("uniform"),
    random_scales=True,
    prompt_words=Span(3, 9),
    new_tokens=Span(2, 5),
    warm_up=6,
)


def test_a_plan_is_the_same_every_time_and_another_in_each_repeat() -> None:
    assert workload.plan(ROW, 0) == workload.plan(ROW, 0)
    first = {ask.prompt for ask in workload.plan(ROW, 0)}
    assert first.isdisjoint({ask.prompt for ask in workload.plan(ROW, 1)})
    assert workload.plan(ROW, 0, seed=1) != workload.plan(ROW, 0)


def test_a_plan_keeps_to_its_lengths_adapters_and_scales() -> None:
    asks = workload.plan(ROW, 0)
    assert len(asks) == 40
    assert {len(ask.prompt.split()) for ask in asks} == set(range(3, 10))
    assert {ask.new_tokens for ask in asks} == {2, 3, 4, 5}
    assert {ask.adapter for ask in asks} == {0, 1, 2, 3}
    assert {ask.scale for ask in asks} == set(workload.SCALES)
    assert [ask.at for ask in asks] == sorted(ask.at for ask in asks) and asks[0].at > 0


def test_the_base_gets_no_adapter_and_a_closed_load_no_times() -> None:
    asks = workload.plan(WorkloadRow("base", requests=5, concurrency=2), 0)
    assert {(ask.adapter, ask.scale, ask.at) for ask in asks} == {(None, 1.0, 0.0)}


def test_warm_up_is_short_and_asks_nothing_that_is_measured() -> None:
    row = WorkloadRow("row", requests=20, concurrency=4, warm_up=4, adapters=4)
    warm = workload.warm_up(row)
    assert [ask.adapter for ask in warm] == [0, 1, 2, 3]
    assert all(ask.new_tokens == workload.WARM_UP_TOKENS for ask in warm)
    assert {ask.prompt for ask in warm}.isdisjoint(ask.prompt for ask in workload.plan(row, 0))


def test_workload_w_is_what_its_page_says() -> None:
    (stage,) = preset.workload_w(zipf=False, own_server=True)
    rows = {row.name: row for row in stage.rows}
    assert [(row.load, row.adapters) for row in rows.values()] == [
        ("c=1", 0),
        ("c=8", 0),
        ("c=1", 1),
        ("c=8", 1),
        ("c=8", 8),
    ]
    for row in rows.values():
        asks = workload.plan(row, 0)
        assert all(len(ask.prompt.split()) == 64 and ask.new_tokens == 64 for ask in asks)
    first = workload.plan(rows[preset.DISTINCT], 0)[:8]
    assert [ask.adapter for ask in first] == list(range(8))


def test_zipf_compares_few_slots_with_enough_of_them_under_one_load() -> None:
    _, few, enough = preset.workload_w(zipf=True, own_server=True)
    assert "16" in few.flags and "64" in enough.flags
    assert few.rows[0].popularity == enough.rows[0].popularity == parse("zipf:1.5")
    assert few.rows[0].adapters == enough.rows[0].adapters == 64
    chosen = [[ask.adapter for ask in workload.plan(stage.rows[0], 0)] for stage in (few, enough)]
    assert len(set(chosen[0])) > 8
    (others,) = preset.workload_w(zipf=True, own_server=False)
    assert others.rows[-1].name == preset.SLOTS and not others.flags


def test_a_system_prompt_is_one_for_each_adapter_and_repeat() -> None:
    row = WorkloadRow("row", 12, concurrency=4, adapters=3, prompt_words=Span(2, 2), system_words=5)
    begins: dict[int | None, set[str]] = {}
    for ask in workload.plan(row, 0):
        assert len(ask.prompt.split()) == 7
        begins.setdefault(ask.adapter, set()).add(" ".join(ask.prompt.split()[:5]))
    assert set(begins) == {0, 1, 2}
    assert all(len(prompts) == 1 for prompts in begins.values())
    assert len(set.union(*begins.values())) == 3
    again = {" ".join(ask.prompt.split()[:5]) for ask in workload.plan(row, 1)}
    assert again.isdisjoint(set.union(*begins.values()))


def test_a_conversation_has_one_adapter_and_one_system_prompt() -> None:
    row = WorkloadRow(
        "row",
        7,
        concurrency=2,
        adapters=2,
        random_scales=True,
        prompt_words=Span(2, 2),
        system_words=5,
        turns=3,
    )
    asks = workload.plan(row, 0)
    assert [ask.turn for ask in asks] == [0, 1, 2, 0, 1, 2, 0]
    assert [ask.continues for ask in asks] == [ask.turn > 0 for ask in asks]
    assert [ask.adapter for ask in asks] == [0, 0, 0, 1, 1, 1, 0]
    assert [len(ask.prompt.split()) for ask in asks] == [7, 2, 2, 7, 2, 2, 7]
    for chat in (asks[:3], asks[3:6]):
        assert len({ask.scale for ask in chat}) == 1


def test_what_shares_nothing_is_drawn_as_before() -> None:
    """Otherwise new figures could not be compared with old ones."""
    (ask, *_) = workload.plan(WorkloadRow("base, c=8", 24, concurrency=8), 0)
    assert ask.prompt.startswith("such should spell home time their ")


def test_workload_s_shares_in_every_row() -> None:
    (stage,) = preset.workload_s()
    assert all(row.shares for row in stage.rows)
    assert not any(row.shares for one in preset.workload_w(zipf=True, own_server=True)
                   for row in one.rows)  # fmt: skip
