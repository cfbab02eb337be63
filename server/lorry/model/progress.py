"""How slow work at start-up says where it is: lines for a log, counts for a bar."""

from __future__ import annotations

import time
from collections.abc import Callable

from lorry.option import format_size

Say = Callable[[str], None]
"""Takes one line of news."""

Meter = Callable[[str, int, int], None]
"""Takes what is being done, bytes done, and bytes in all; called often."""


_EVERY = 2.0
"""Seconds between two lines."""


def meter_of(say: Say) -> Meter:
    """A meter for where no bar can be drawn: a line every two seconds, none for quick work."""
    last: dict[str, float] = {}

    def tell(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last.setdefault(what, now) >= _EVERY and total:
            last[what] = now
            say(f"{what}: {format_size(done)} of {format_size(total)} ({100 * done // total} %)")

    return tell
