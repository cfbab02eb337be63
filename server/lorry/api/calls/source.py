"""A text that is still being written, and what is found in it.

Readers are generators that yield where they need more text, so they read as if all of it were
there. They look one character ahead at most beyond what they take, and decide by that alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Reading = Generator[None, None, T]
"""Yields where more text is needed; returns what it found."""

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
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of its arguments, JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """It is complete."""


Found = Said | Thought | Called | Argued | Done


class Source:
    """The text, and a place in it."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._kept = 0
        """What is before it needs no second look."""
        self.over = False
        """Nothing follows."""
        self.found: list[Found] = []

    def feed(self, text: str) -> None:
        self._text = self._text[self._kept :] + text
        self._at -= self._kept
        self._kept = 0

    # What readers find

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
        """What was taken is no text, whatever comes."""
        self._kept = self._at

    def unsettled(self) -> str:
        """What was taken and turned out to be text; it is settled by that."""
        text = self._text[self._kept : self._at]
        self.settle()
        return text

    # What readers take

    @property
    def ahead(self) -> str:
        """What has come and was not taken."""
        return self._text[self._at :]

    def take(self, count: int = 1) -> str:
        taken = self._text[self._at : self._at + count]
        self._at += count
        return taken

    def peek(self) -> Reading[str]:
        """The next character; empty at the end."""
        while self._at >= len(self._text):
            if self.over:
                return ""
            yield
        return self._text[self._at]

    def run(self, pattern: re.Pattern[str]) -> str:
        """As many of the next characters as have come and match; the pattern is of single
        characters, so that it matters not how many have."""
        match = pattern.match(self._text, self._at)
        return self.take(match.end() - self._at) if match else ""

    def all(self, pattern: re.Pattern[str]) -> Reading[str]:
        """All of the next characters that match."""
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
        """Takes that of the marks which comes next; none of them begins another."""
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
        """Takes all that is before `mark`, and it; False where it does not come."""
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
    """Length of the longest end of `text` that begins one of `marks`."""
    longest = 0
    for mark in marks:
        for length in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:length]):
                longest = length
                break
    return longest
