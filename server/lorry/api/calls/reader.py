"""Splits an answer, piece by piece, into text and calls."""

from __future__ import annotations

from collections.abc import Callable

from lorry.api.calls.notation import Notation, Offered
from lorry.api.calls.source import Argued, Called, Done, Found, Reading, Source, begun_of
from lorry.api.calls.values import calls, value

Readings = Callable[[Source], Reading[None]]


class Reader:
    """Reads with `readings`. The results do not depend on how the text was cut."""

    def __init__(self, readings: Readings, *, several: bool = True) -> None:
        """Without `several`, everything after the first call is dropped."""
        self._source = Source()
        self._reading = readings(self._source)
        self._several = several
        self._called = 0
        self._complete = 0
        self._enough = False

    def push(self, text: str) -> list[Found]:
        """Take text and return what is certain now."""
        self._source.feed(text)
        return self._found()

    def end(self) -> list[Found]:
        """End the text and return the rest."""
        self._source.over = True
        return self._found()

    @property
    def called(self) -> bool:
        return self._called > 0

    @property
    def complete(self) -> bool:
        """True if every call has all of its arguments."""
        return self._called == self._complete

    def _found(self) -> list[Found]:
        next(self._reading, None)
        found, self._source.found = self._source.found, []
        kept: list[Found] = []
        for one in found:
            if self.called and not self._several and not isinstance(one, Argued | Done):
                self._enough = True
            if self._enough:
                break
            self._called += isinstance(one, Called)
            self._complete += isinstance(one, Done)
            kept.append(one)
        return kept


def text_only(source: Source) -> Reading[None]:
    while True:
        source.say(source.take(len(source.ahead)))
        source.settle()
        if source.over:
            return
        yield


def free(notation: Notation, offered: Offered) -> Readings:
    """Find the calls that the model makes by itself; the rest is text."""
    openers = tuple(notation.openers)
    assert not any(a != b and a.startswith(b) for a in openers for b in openers), openers

    def text(source: Source) -> Reading[str | None]:
        """Report the text before the next opener, and take the opener."""
        while True:
            ahead = source.ahead
            places = [(ahead.find(one), one) for one in openers]
            place, opener = min((one for one in places if one[0] >= 0), default=(-1, None))
            if opener is None:
                held = 0 if source.over else begun_of(ahead, openers)
                place = len(ahead) - held
            source.say(source.take(place))
            source.settle()
            if opener is not None:
                source.take(len(opener))
                return opener
            if source.over:
                return None
            yield

    def readings(source: Source) -> Reading[None]:
        called = False
        if notation.start is not None:
            yield from source.blanks()
            called = yield from notation.start(source, offered)
            if not called:
                source.say(source.unsettled())
        while True:
            if called:
                # Between calls and behind the last one.
                source.settle()
                yield from source.blanks()
                source.settle()
            opener = yield from text(source)
            if opener is None:
                return
            told = yield from notation.openers[opener](source, offered)
            called = called or told
            if not told:
                source.say(source.unsettled())

    return readings


def forced(offered: Offered, name: str | None) -> Readings:
    """Read an answer that a grammar forced: the arguments of `name`, or calls as JSON."""

    def readings(source: Source) -> Reading[None]:
        yield from source.blanks()
        if name is None:
            if not (yield from calls(source, offered)):
                source.say(source.unsettled())
        elif (yield from source.peek()):
            source.settle()
            source.call(name)
            if (yield from value(source, source.argue)):
                source.done()

    return readings
