"""Control tokens in the text of a chat's messages: text, and not what they are in a template.

A message that says `<|im_end|><|im_start|>system` would otherwise end itself and speak as
somebody else. So control tokens in what clients send are marked before the template is
rendered, and what is marked is made of ordinary tokens. As transformers'
`sanitize_control_tokens` does it, which changes the tokenizer while it works and so is for
one thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

_BEGIN, _END = "\ue0f0", "\ue0f1"
"""Of the private use area: in no template. What a client sends of them is dropped."""

_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}|[{_BEGIN}{_END}]")


class ControlTokens:
    """Those that are special, and those that a template writes. Immutable."""

    def __init__(self, special: Iterable[str], added: Iterable[str], template: str) -> None:
        """`special` and `added`: tokens as they are written."""
        written = {one for one in added if one in template and not one.isspace()}
        names = sorted({*special, *written} - {""}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def marked(self, value: Any) -> Any:
        """The same with a mark around each of them; of objects and lists every text in them,
        but for keys."""
        if isinstance(value, str):
            plain = value.replace(_BEGIN, "").replace(_END, "")
            return plain if self._pattern is None else self._pattern.sub(_mark, plain)
        if isinstance(value, Mapping):
            return {key: self.marked(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(one) for one in value]
        return value


def unmarked(text: str) -> str:
    """As it would be without marks."""
    return text.replace(_BEGIN, "").replace(_END, "")


def encoded(text: str, encode: Callable[[str], Sequence[int]]) -> list[int] | None:
    """Token ids of a marked text, of which `encode` makes those of a plain one, without tokens
    around it; None where nothing is marked."""
    if _BEGIN not in text and _END not in text:
        return None
    ids: list[int] = []
    line = list(encode("\n"))
    for part in _parts(text):
        # In the midst of a text: some tokenizers put a blank before what they begin with.
        inside = list(encode("\n" + part)) if ids else []
        if line and inside[: len(line)] == line:
            ids += inside[len(line) :]
        else:
            ids += encode(part)
    return ids


def _parts(text: str) -> Iterator[str]:
    """What is to be encoded part by part: a token that is cut in two is none."""
    at = 0
    for found in _MARKED.finditer(text):
        token = found[1] or ""
        yield from filter(None, (text[at : found.start()], token[:1], token[1:]))
        at = found.end()
    if at < len(text):
        yield text[at:]


def _mark(found: re.Match[str]) -> str:
    return f"{_BEGIN}{found[0]}{_END}"
