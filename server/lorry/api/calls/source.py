"""A text that is still being written, and the things found in it.

Readers are generators that yield whenever they need more text, so they are written as if all of it
were there. They look at most one character beyond what they take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Reading = Generator[None, None, T]
"""Yields when it needs more text; returns its result."""

_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """The start of a call."""

    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of its arguments, as JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a call."""


Found = Said | Thought | Called | Argued | Done


class Source:
    """The text and a position in it."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._kept = 0
        """The text before it is settled."""
        self.over = False
        """True if no more text follows."""
        self.found: list[Found] = []

    def feed(self, text: str) -> None:
        self._text = self._text[self._kept :] + text
        self._at -= self._kept
        self._kept = 0

    # Called by readers to report

    def say(self, text: str) -> None:
        self._more(Said, text)

    def think(self, text: str) -> None:
        self._more(Thought, text)
        self.settle()

    def call(self, name: str) -> None:
        self.found.append(Called(name))
        self.settle()

    def argue(self, text: str) -> None:
        self._more(Argued, text)
        self.settle()

    def done(self) -> None:
        self.found.append(Done())
        self.settle()

    def _more(self, kind: type[Said | Thought | Argued], text: str) -> None:
        last = self.found[-1] if self.found else None
        if isinstance(last, kind):
            self.found[-1] = kind(last.text + text)
        elif text:
            self.found.append(kind(text))

    def settle(self) -> None:
        """Settle what was taken: it is not text, whatever follows."""
        self._kept = self._at

    def unsettled(self) -> str:
        """Return what was taken since the last settled position, as text, and settle it."""
        text = self._text[self._kept : self._at]
        self.settle()
        return text

    # Called by readers to take text

    @property
    def ahead(self) -> str:
        """The text that has come and was not taken."""
        return self._text[self._at :]

    def take(self, count: int = 1) -> str:
        taken = self._text[self._at : self._at + count]
        self._at += count
        return taken

    def peek(self) -> Reading[str]:
        """Return the next character, or an empty string at the end."""
        while self._at >= len(self._text):
            if self.over:
                return ""
            yield
        return self._text[self._at]

    def run(self, pattern: re.Pattern[str]) -> str:
        """Take the available next characters that match. The pattern matches single characters, so
        that the pieces do not matter."""
        match = pattern.match(self._text, self._at)
        return self.take(match.end() - self._at) if match else ""

    def all(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Take all of the next characters that match."""
        taken = ""
        while (yield from self.peek()):
            piece = self.run(pattern)
            if not piece:
                break
            taken += piece
        return taken

    def blanks(self) -> Reading[str]:
        return (yield from self.all(_BLANKS))

    def takes(self, *marks: str) -> Reading[str | None]:
        """Take the mark that comes next, or return None. No mark is the start of another."""
        length = 0
        while True:
            length += 1
            while len(self._text) - self._at < length and not self.over:
                yield
            begun = self._text[self._at : self._at + length]
            if begun in marks and len(begun) == length:
                return self.take(length)
            if len(begun) < length or not any(mark.startswith(begun) for mark in marks):
                return None

    def until(self, mark: str, say: Callable[[str], None]) -> Reading[bool]:
        """Take everything up to and including `mark`. Return False if it does not come."""
        while True:
            ahead = self.ahead
            place = ahead.find(mark)
            if place >= 0:
                say(self.take(place))
                self.take(len(mark))
                return True
            held = 0 if self.over else begun_of(ahead, (mark,))
            say(self.take(len(ahead) - held))
            if self.over:
                return False
            yield


def begun_of(text: str, marks: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that begins one of `marks`."""
    longest = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest
