"""Messages to the engine, called letters, and the mailbox for them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lorry.core import Request

PATIENCE = 0.5
"""Seconds that an idle engine sleeps if nothing wakes it."""


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The registry has freed this content."""

    digest: str


Letter = Submit | Cancel | Forget


class Mailbox:
    """Letters to the engine. Any thread puts, the engine takes."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._woken = False
        self._closed = False
        self._changed = threading.Condition()

    def put(self, letter: Letter) -> None:
        """Deliver a letter that an engine which has ended does not need."""
        self.offer(letter)

    def offer(self, letter: Letter) -> bool:
        """Deliver a letter. Return False if the engine has ended and nobody will read it."""
        with self._changed:
            if self._closed:
                return False
            self._letters.append(letter)
            self._changed.notify()
            return True

    def wake(self) -> None:
        """Wake the engine for a change other than a letter."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def take(self) -> list[Letter]:
        with self._changed:
            letters, self._letters = self._letters, []
            self._woken = False
            return letters

    def close(self) -> None:
        """Accept no more letters. Those delivered before can still be taken."""
        with self._changed:
            self._closed = True

    def wait(self) -> None:
        """Sleep until there is a letter or a wake since the last `take`."""
        with self._changed:
            self._changed.wait_for(lambda: self._letters or self._woken, timeout=PATIENCE)
