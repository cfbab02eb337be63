"""Converts streamed token ids to text and finds the strings that end it.

`Detokenizer` never returns half a character, and `StopStrings` never returns a stop string or
anything after one, wherever the borders between tokens fall. Both are fed piece by piece, and
their output does not depend on how the pieces were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Decode = Callable[[Sequence[int]], str]
"""Converts token ids to text, with special tokens and without cleanup."""

Whole = Callable[[int], str | None]
"""Returns a token's text if it does not depend on its neighbours, else None."""

REPLACEMENT = "\ufffd"

_CONTEXT = 6
"""Prompt tokens kept before the answer: decoders that strip the first token's leading space must
not strip the answer's."""

_PATIENCE = 256
"""The most tokens held back. A character has at most four bytes, so a longer wait is noise, and
decoding an ever longer window would be quadratic."""


class Detokenizer:
    """Turns one answer's token ids into text. Special tokens have no text."""

    def __init__(
        self,
        decode: Decode,
        special_ids: frozenset[int],
        context: Sequence[int] = (),
        *,
        whole: Whole = lambda token_id: None,
    ) -> None:
        """`context` is the prompt (its tail is enough); its text is not repeated. Tokens that
        `whole` knows are not decoded if nothing is held back."""
        self._decode = decode
        self._whole = whole
        self._special_ids = special_ids
        self._ids = [one for one in context[-_CONTEXT:] if one not in special_ids]
        # Text up to `_read` has been returned. The window to decode starts at `_start`, one step
        # earlier: a token's text can depend on the token before it.
        self._start = 0
        self._read = len(self._ids)

    def push(self, token_id: int) -> str:
        """Return the text that is certain now; empty while a character is incomplete."""
        if token_id in self._special_ids:
            return ""
        settled = self._read == len(self._ids)
        self._ids.append(token_id)
        whole = self._whole(token_id) if settled else None
        if whole is not None:
            self._advance()
            return whole
        fresh = self._fresh()
        if fresh.endswith(REPLACEMENT) and len(self._ids) - self._read < _PATIENCE:
            return ""
        self._advance()
        return fresh

    def flush(self) -> str:
        """Return the text held back, with U+FFFD for bytes that never became a character."""
        if self._read == len(self._ids):
            return ""
        fresh = self._fresh()
        self._advance()
        return fresh

    def _fresh(self) -> str:
        shown = self._decode(self._ids[self._start : self._read])
        window = self._decode(self._ids[self._start :])
        if window.startswith(shown):
            return window[len(shown) :]
        # In decoders that join a run of byte tokens, a byte can spoil the character before it. The
        # text that was returned stays; the rest is decoded by itself.
        return self._decode(self._ids[self._read :])

    def _advance(self) -> None:
        del self._ids[: self._start]
        self._start = self._read - self._start
        self._read = len(self._ids)


class StopStrings:
    """Watches a text for the first completed stop string.

    With `keep` the stop string itself is returned (as in TGI). Without, it is not (as in OpenAI's
    API), and text that may begin one is held back until it is certain.

    Special tokens are never returned. The stop strings in `marked` contain the text of one, so they
    are searched for in the text with special tokens too. The others are not, and a special token
    in the midst of one does not break it.
    """

    def __init__(
        self, stops: Sequence[str], *, keep: bool, marked: Collection[str] = frozenset()
    ) -> None:
        assert all(stops), "an empty stop string matches everywhere"
        self._stops = tuple(stops)
        self._marked = tuple(one for one in stops if one in marked)
        self._keep = keep
        # Text that may still belong to a stop string: without special tokens, and with them in
        # `_whole`, where `_visible` marks the characters to return.
        self._buffer = ""
        self._whole = ""
        self._visible = bytearray()
        self._sent = 0
        self.hit: str | None = None
        """The stop string that was found; nothing may be pushed after that."""

    def push(self, text: str, special: str = "") -> str:
        """Take text. `special` is the text of a special token before `text`."""
        assert self.hit is None
        if not self._stops:
            return text
        self._buffer += text
        if self._marked:
            self._whole += special + text
            self._visible += bytes(len(special)) + b"\1" * len(text)
        found = self._first()
        if found is not None:
            start, end, self.hit = found
            return self._buffer[self._sent : end if self._keep else start]
        cut = len(self._buffer) - self._held()
        if self._keep:
            out = self._buffer[self._sent :]
            self._sent = len(self._buffer) - cut
        else:
            out = self._buffer[:cut]
        self._buffer = self._buffer[cut:]
        return out

    def flush(self) -> str:
        """End the text. What was held back is not a stop string."""
        out = "" if self.hit is not None else self._buffer[self._sent :]
        self._buffer = ""
        self._sent = 0
        return out

    def _first(self) -> tuple[int, int, str] | None:
        """Return the stop string that ends first (the longest of those), with its start and end in
        the buffer."""
        found = []
        for stop in self._stops:
            start = self._buffer.find(stop)
            if start >= 0:
                found.append((start, start + len(stop), stop))
        for stop in self._marked:
            start = self._whole.find(stop)
            if start >= 0:
                found.append((self._place(start), self._place(start + len(stop)), stop))
        return min(found, key=lambda one: (one[1], one[0]), default=None)

    def _place(self, index: int) -> int:
        """Return the index in the buffer at which a character of `_whole` is, or would be."""
        return len(self._buffer) - self._visible.count(1, index)

    def _held(self) -> int:
        """Return the length of the buffer's end that may belong to a stop string. Drops what cannot
        from `_whole`."""
        held = _begun(self._buffer, self._stops)
        if not self._marked:
            return held
        cut = len(self._whole) - _begun(self._whole, self._marked)
        self._whole = self._whole[cut:]
        del self._visible[:cut]
        return max(held, self._visible.count(1))


def _begun(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that begins one of `stops`."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
