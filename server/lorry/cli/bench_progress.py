"""Shows how far `lorry bench` is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from lorry.bench.campaign import Ticker
from lorry.cli.output import report as tell


class _Bar:
    """Progress on standard error: a bar in a terminal, otherwise a line for each new step."""

    def __init__(self, progress: Progress, task: TaskID, title: str) -> None:
        self._progress = progress
        self._task = task
        self._title = title

    def began(self, what: str) -> None:
        if self._progress.disable:
            tell(f"{self._title}: {what}")
        else:
            self._progress.update(self._task, description=f"{self._title}: {what}")

    def done(self) -> None:
        self._progress.advance(self._task)


@contextmanager
def show(title: str, total: int | None) -> Iterator[Ticker]:
    counts = () if total is None else (MofNCompleteColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    progress = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        # Drawn in a thread of this process, which measures: twice a second is enough.
        refresh_per_second=2,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        if progress.disable:
            tell(title)
        yield _Bar(progress, progress.add_task(title, total=total), title)
