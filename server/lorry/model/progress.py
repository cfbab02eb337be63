"""How slow work at start-up says where it is: lines for a log, counts for a bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from lorry.option import format_size

Say = Callable[[str], None]
"""Takes one line of news."""

Meter = Callable[[str, int, int], None]
"""Takes what is being done, bytes done, and bytes in all; called often."""


_EVERY = 2.0
"""Seconds between two lines."""


def meter_of(say: Say) -> Meter:
    """A meter for where no bar can be drawn: a line every two seconds, none for quick work."""
    first: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}

    def tell(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        first.setdefault(what, (now, done))
        if now - last.setdefault(what, now) >= _EVERY and total:
            last[what] = now
            start, already = first[what]
            line = f"{what}: {format_size(done)} of {format_size(total)} ({100 * done // total} %)"
            if done > already:
                left = (total - done) * (now - start) / (done - already)
                line += f", {timedelta(seconds=round(left))} left"
            say(line)

    return tell
