"""How slow work at start-up says where it is: lines for a log, counts for a bar."""

from __future__ import annotations

from collections.abc import Callable

from lorry.option import format_size

Say = Callable[[str], None]
"""Takes one line of news."""

Meter = Callable[[str, int, int], None]
"""Takes what is being done, bytes done, and bytes in all; called often."""


def meter_of(say: Say) -> Meter:
    """A meter for where no bar can be drawn: a line at every tenth."""
    told: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > told.get(what, -1):
            told[what] = tenth
            say(f"{what}: {10 * tenth} % of {format_size(total)}")

    return tell
