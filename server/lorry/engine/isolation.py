"""Finds the rows that make a step raise, so that the others keep their answers.

The rows of a failed step run again: first by adapter set, then one by one within a set that
fails again. That is safe because a row writes to its own blocks only, and the same keys and
values each time. A row that fails alone is tried once more without its adapters. If that works,
its adapters are at fault; if it has several, each is tried separately.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorry.core import Batch, Pooling, Row, RowResult, SlotUse
from lorry_adapters.errors import OutOfMemory

Run = Callable[[Batch], Sequence[RowResult]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that fails even alone."""

    row: Row
    error: Exception
    slots: tuple[int, ...]
    """The slots of the adapters at fault."""
    base: bool
    """True if it also fails without its adapters."""


@dataclass(frozen=True, slots=True)
class Isolated:
    batch: Batch
    """The rows that succeed."""
    results: Sequence[RowResult]
    """Their results."""
    faults: tuple[Fault, ...] = ()


def isolate(batch: Batch, run: Run) -> Isolated:
    """Run the rows of `batch`, which has just failed, apart. Return their results and faults."""
    well: list[tuple[Row, RowResult]] = []
    faults: list[Fault] = []
    parts = deque(_parts(batch))
    while parts:
        part = parts.popleft()
        results, error = _attempt(part, run)
        if error is None:
            well += zip(part.rows, results, strict=True)
        elif len(part.rows) == 1:
            faults.append(_fault(part.rows[0], error, run))
        else:
            parts.extendleft(Batch((row,)) for row in reversed(part.rows))
    rows = tuple(row for row, _ in well)
    return Isolated(Batch(rows), tuple(result for _, result in well), tuple(faults))


def _parts(batch: Batch) -> Iterator[Batch]:
    sets: dict[frozenset[int], list[Row]] = {}
    for row in batch.rows:
        sets.setdefault(frozenset(use.slot for use in row.adapters), []).append(row)
    return (Batch(tuple(rows)) for rows in sets.values())


def _attempt(batch: Batch, run: Run) -> tuple[Sequence[RowResult], Exception | None]:
    try:
        return run(batch), None
    except Exception as error:  # noqa: BLE001 - it becomes the row's error
        return (), error


def _fault(row: Row, error: Exception, run: Run) -> Fault:
    def fails(adapters: tuple[SlotUse, ...]) -> bool:
        return _attempt(Batch((_with(row, adapters),)), run)[1] is not None

    if isinstance(error, OutOfMemory):
        # Nobody is at fault: it may fit next time.
        return Fault(row, error, (), base=False)
    if not row.adapters or fails(()):
        return Fault(row, error, (), base=True)
    if len(row.adapters) == 1:
        return Fault(row, error, (row.adapters[0].slot,), base=False)
    guilty = tuple(use.slot for use in row.adapters if fails((use,)))
    return Fault(row, error, guilty, base=False)


def _with(row: Row, adapters: tuple[SlotUse, ...]) -> Row:
    """Return `row` with other adapters. Virtual tokens and labels belong to its own adapters, so
    the result has neither."""
    pooling = Pooling.LAST if row.pooling is Pooling.CLASSIFY else row.pooling
    return replace(row, adapters=adapters, pooling=pooling, virtual=0)
