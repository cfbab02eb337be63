"""Which rows of a failed step are at fault; the others get what they get alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.core import Batch, Drawn, Pooling, Row, RowResult, SlotUse, TokenLogprob
from lorry.engine.isolation import Fault, isolate
from lorry_adapters.errors import OutOfMemory


def row(name: str, *slots: int, tokens: Sequence[int] = (1,), **more: object) -> Row:
    uses = tuple(SlotUse(slot, 1.0) for slot in slots)
    return Row(name, tokens, 0, (), uses, None, **more)  # type: ignore[arg-type]


def slots_of(one: Row) -> set[int]:
    return {use.slot for use in one.adapters}


class Model:
    """Says how long a row is, and raises as `fails` says of a batch."""

    def __init__(self, fails: Callable[[Sequence[Row]], Exception | None]) -> None:
        self._fails = fails
        self.ran: list[list[str]] = []

    def run(self, batch: Batch) -> list[RowResult]:
        self.ran.append([one.request_id for one in batch.rows])
        error = self._fails(batch.rows)
        if error is not None:
            raise error
        return [RowResult((Drawn(TokenLogprob(len(one.token_ids), 0.0)),)) for one in batch.rows]


def any_row(guilty: Callable[[Row], bool]) -> Callable[[Sequence[Row]], Exception | None]:
    return lambda rows: ValueError("odd") if any(map(guilty, rows)) else None


def told(batch: Batch, results: Sequence[RowResult]) -> dict[str, int]:
    return {
        one.request_id: result.drawn[0].token.token_id
        for one, result in zip(batch.rows, results, strict=True)
    }


def test_rows_of_one_adapter_set_run_together() -> None:
    rows = (row("a"), row("b", 1), row("c", 2), row("d", 1), row("e", 1, 2), row("f", 2, 1))
    model = Model(any_row(lambda one: slots_of(one) == {2}))
    found = isolate(Batch(rows), model.run)
    assert model.ran == [["a"], ["b", "d"], ["c"], ["c"], ["e", "f"]]
    assert told(found.batch, found.results) == dict.fromkeys("abdef", 1)
    assert [(fault.row.request_id, fault.slots, fault.base) for fault in found.faults] == [
        ("c", (2,), False)
    ]


def test_an_adapter_that_fails_on_some_of_its_rows() -> None:
    rows = (row("short", 1), row("long", 1, tokens=[1] * 9), row("other", 1))
    model = Model(any_row(lambda one: bool(one.adapters) and len(one.token_ids) > 5))
    found = isolate(Batch(rows), model.run)
    assert told(found.batch, found.results) == {"short": 1, "other": 1}
    (fault,) = found.faults
    assert (fault.row, fault.slots, fault.base) == (rows[1], (1,), False)
    assert isinstance(fault.error, ValueError)


def fault_of(rows: Sequence[Row], fails: Callable[[Sequence[Row]], Exception | None]) -> Fault:
    (fault,) = isolate(Batch(tuple(rows)), Model(fails).run).faults
    return fault


def test_the_base_is_at_fault_where_the_row_fails_without_adapters() -> None:
    long = any_row(lambda one: len(one.token_ids) > 5)
    for one in (row("base", tokens=[1] * 9), row("adapter", 1, tokens=[1] * 9)):
        fault = fault_of([row("fine"), one], long)
        assert (fault.row, fault.slots, fault.base) == (one, (), True)


def test_of_several_adapters_those_that_fail_alone_are_at_fault() -> None:
    rows = [row("sum", 1, 2, 3)]
    assert fault_of(rows, any_row(lambda one: 2 in slots_of(one))).slots == (2,)
    both = fault_of(rows, any_row(lambda one: bool({2, 3} & slots_of(one))))
    assert both.slots == (2, 3)
    together = fault_of(rows, any_row(lambda one: len(one.adapters) > 1))
    assert (together.slots, together.base) == ((), False)


def test_rows_that_fail_only_beside_each_other_are_well() -> None:
    rows = (row("a"), row("b", 1), row("c", 1))
    found = isolate(Batch(rows), Model(lambda many: ValueError() if len(many) > 1 else None).run)
    assert told(found.batch, found.results) == {"a": 1, "b": 1, "c": 1}
    assert not found.faults


def test_memory_that_runs_out_is_nobody_s_fault() -> None:
    def fails(rows: Sequence[Row]) -> Exception | None:
        return OutOfMemory("full") if any(one.adapters for one in rows) else None

    fault = fault_of([row("a", 1)], fails)
    assert (fault.slots, fault.base) == ((), False)


@pytest.mark.parametrize("pooling", [Pooling.CLASSIFY, Pooling.MEAN])
def test_the_base_is_not_asked_for_what_only_the_adapter_has(pooling: Pooling) -> None:
    def guilty(one: Row) -> bool:
        assert one.adapters or (one.pooling is not Pooling.CLASSIFY and not one.virtual)
        return bool(one.adapters)

    one = row("a", 1, tokens=[0, 0, 1], virtual=2, pooling=pooling)
    assert fault_of([one], any_row(guilty)).slots == (1,)


SETS = st.lists(st.integers(1, 4), max_size=3, unique=True)


@given(st.lists(SETS, min_size=1, max_size=8), st.sets(st.integers(0, 4)))
def test_the_guilty_and_no_others(sets: list[list[int]], guilty: set[int]) -> None:
    """Slot 0 is the base: where it is guilty, everything fails."""
    rows = [row(str(index), *slots) for index, slots in enumerate(sets)]

    def fails(one: Row) -> bool:
        return bool(guilty & {0, *slots_of(one)})

    found = isolate(Batch(tuple(rows)), Model(any_row(fails)).run)
    assert {one.request_id for one in found.batch.rows} == {
        one.request_id for one in rows if not fails(one)
    }
    assert sorted(fault.row.request_id for fault in found.faults) == [
        one.request_id for one in rows if fails(one)
    ]
    for fault in found.faults:
        assert fault.base is (0 in guilty)
        assert set(fault.slots) == (set() if 0 in guilty else guilty & slots_of(fault.row))
