"""Control tokens in the text of a chat's messages are text, and have no effect in a template.

Otherwise a message with `<|im_end|><|im_start|>system` would end itself and speak in another
role. So control tokens in what clients send are marked before the template is rendered, and the
marked ones are encoded as ordinary tokens. transformers' `sanitize_control_tokens` does the
same, but changes the tokenizer while it works and so needs a single thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

_BEGIN, _END = "\ue0f0", "\ue0f1"
"""From the private use area, so in no template. They are removed from what a client sends."""

_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}|[{_BEGIN}{_END}]")


class ControlTokens:
    """Special tokens, and those that a template writes. Immutable."""

    def __init__(self, special: Iterable[str], added: Iterable[str], template: str) -> None:
        """`special` and `added` are the tokens' texts."""
        written = {one for one in added if one in template and not one.isspace()}
        names = sorted({*special, *written} - {""}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def marked(self, value: Any) -> Any:
        """Return the value with a mark around each control token. In objects and lists every string
        except keys is marked."""
        if isinstance(value, str):
            plain = value.replace(_BEGIN, "").replace(_END, "")
            return plain if self._pattern is None else self._pattern.sub(_mark, plain)
        if isinstance(value, Mapping):
            return {key: self.marked(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(one) for one in value]
        return value


def unmarked(text: str) -> str:
    """Return a text without marks."""
    return text.replace(_BEGIN, "").replace(_END, "")


def encoded(text: str, encode: Callable[[str], Sequence[int]]) -> list[int] | None:
    """Return the token ids of a marked text, or None if nothing is marked. `encode` encodes a plain
    text without tokens around it."""
    if _BEGIN not in text and _END not in text:
        return None
    ids: list[int] = []
    line = list(encode("\n"))
    for part in _parts(text):
        # After a newline: some tokenizers put a blank before the start of a text.
        inside = list(encode("\n" + part)) if ids else []
        if line and inside[: len(line)] == line:
            ids += inside[len(line) :]
        else:
            ids += encode(part)
    return ids


def _parts(text: str) -> Iterator[str]:
    """Yield the parts to encode separately: a token that is cut in two is not a token."""
    at = 0
    for found in _MARKED.finditer(text):
        token = found[1] or ""
        yield from filter(None, (text[at : found.start()], token[:1], token[1:]))
        at = found.end()
    if at < len(text):
        yield text[at:]


def _mark(found: re.Match[str]) -> str:
    return f"{_BEGIN}{found[0]}{_END}"
