"""How far slow work is and how long it will take: bars on standard error, in a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from lorry.bench.campaign import Ticker
from lorry.cli.output import report
from lorry.model.progress import Meter, Say


class Advance(Protocol):
    def __call__(self, count: int) -> None: ...


Tell = Callable[[int, int], None]
"""Takes the steps done, and the steps in all."""


@contextmanager
def transfer(title: str, total: int | None) -> Iterator[Advance]:
    """A bar of bytes that are sent or received."""
    with _bars(DownloadColumn(binary_units=True), TransferSpeedColumn()) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)


@contextmanager
def steps(title: str) -> Iterator[Tell]:
    """A bar of steps whose number the work tells."""
    with _bars(MofNCompleteColumn()) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def metered() -> Iterator[tuple[Say, Meter]]:
    """Bars of bytes, one for each kind of work, and lines of news that do not disturb them."""
    with _bars(DownloadColumn(binary_units=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def meter(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total, visible=done < total)

        def say(line: str) -> None:
            if bars.disable:
                report(line)
            else:
                bars.console.print(Text(line))

        yield say, meter


class _Campaign:
    """Elsewhere than in a terminal a line for each new step: a benchmark takes minutes."""

    def __init__(self, bars: Progress, task: TaskID, title: str) -> None:
        self._bars = bars
        self._task = task
        self._title = title

    def began(self, what: str) -> None:
        if self._bars.disable:
            report(f"{self._title}: {what}")
        else:
            self._bars.update(self._task, description=f"{self._title}: {what}")

    def done(self) -> None:
        self._bars.advance(self._task)


@contextmanager
def campaign(title: str, total: int | None) -> Iterator[Ticker]:
    """Shows how far `lorry bench` is."""
    counts = () if total is None else (MofNCompleteColumn(),)
    # Drawn in a thread of the process that measures: twice a second is enough.
    with _bars(*counts, per_second=2) as bars:
        if bars.disable:
            report(title)
        yield _Campaign(bars, bars.add_task(title, total=total), title)


def _bars(*columns: ProgressColumn, per_second: float = 10) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=per_second,
        disable=not sys.stderr.isatty(),
    )
