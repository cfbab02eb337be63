"""Letters to the engine, and the mailbox where any thread puts them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lorry.core import Request

PATIENCE = 0.5
"""Seconds an idle engine sleeps when nobody wakes it."""


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The registry has let go of this content."""

    digest: str


Letter = Submit | Cancel | Forget


class Mailbox:
    """Letters to the engine; any thread puts, the engine takes."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._woken = False
        self._closed = False
        self._changed = threading.Condition()

    def put(self, letter: Letter) -> None:
        """An engine that has ended needs no news."""
        self.offer(letter)

    def offer(self, letter: Letter) -> bool:
        """False where the engine has ended: nobody will ever read it."""
        with self._changed:
            if self._closed:
                return False
            self._letters.append(letter)
            self._changed.notify()
            return True

    def wake(self) -> None:
        """Something else has changed that the engine should look at."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def take(self) -> list[Letter]:
        with self._changed:
            letters, self._letters = self._letters, []
            self._woken = False
            return letters

    def close(self) -> None:
        """No more letters; those that are here can still be taken."""
        with self._changed:
            self._closed = True

    def wait(self) -> None:
        """Sleep until there is a letter or a wake since the last `take`."""
        with self._changed:
            self._changed.wait_for(lambda: self._letters or self._woken, timeout=PATIENCE)
