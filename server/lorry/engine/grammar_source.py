"""Converts grammars of every kind for llguidance, and its errors for people.

It runs in a grammar's own process, within its limits.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import llguidance

from lorry.engine.gbnf import lark_of
from lorry.engine.json_schema import held, target, within

_ANY_SPACE = r"[\x20\x0A\x0D\x09]{0,20}"
"""Bounded: otherwise a model that likes blanks would fill the whole answer with them."""

_LITTLE_SPACE = r"\x20?"

_LOOKING = 1.0
"""Seconds of processor time to look for the position of a mistake."""

_DEEP = "recursion limit exceeded: it is nested too deeply"
_IMPOSSIBLE = "Unsatisfiable schema:"
_SAME_VALUE = ("/allOf/", "/anyOf/", "/oneOf/")

Refusal = Callable[[str], str]
"""Returns llguidance's error for a source, or an empty string."""


def source_of(asked: dict[str, Any]) -> str:
    """Return a source for llguidance. `asked` has the `kind` and `text` of a grammar; for a schema
    also `closed`, and `whitespace`, which is an expression or None. Raises ValueError."""
    kind, text = asked["kind"], asked["text"]
    if kind == "json":
        return _of_schema(_read(text), asked)
    if kind == "choice":
        return _of_regex("|".join(re.escape(one) for one in json.loads(text)))
    if kind == "regex":
        return _of_regex(text)
    if kind == "gbnf":
        text = lark_of(text)
    # A bare text that begins with `{` would be read as llguidance's own notation.
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def reason_of(error: str, asked: dict[str, Any], refusal: Refusal) -> str:
    """Return one line for the client; for a schema it contains the position of the mistake."""
    if asked["kind"] != "json" or error.startswith("NoExtension"):
        return _in_words(error)
    try:
        schema = _read(asked["text"])
        place, error = _Fault(schema, asked, refusal).place(error)
    except (ValueError, RecursionError):
        place = "#"
    return _in_words(error) if place == "#" else f"at {place[:200]}: {_in_words(error)}"


class _Fault:
    """Looks for the smallest part of a schema that is refused by itself."""

    def __init__(self, root: Any, asked: dict[str, Any], refusal: Refusal) -> None:
        self._root = root
        self._asked = asked
        self._refusal = refusal
        self._until = time.process_time() + _LOOKING
        self._seen = {"#"}

    def place(self, error: str) -> tuple[str, str]:
        """Return its JSON pointer and its error."""
        place, schema = "#", self._root
        while (deeper := self._deeper(place, schema, error)) is not None:
            place, schema, error = deeper
        return place, error

    def _deeper(self, place: str, schema: Any, error: str) -> tuple[str, Any, str] | None:
        for end, part, needed in self._parts(place, schema):
            if end in self._seen or time.process_time() > self._until:
                continue
            self._seen.add(end)
            said = self._refusal(_of_schema(self._alone(part), self._asked))
            if said and (said == error or (needed and said.startswith(_IMPOSSIBLE))):
                return end, part, said
        return None

    def _parts(self, place: str, schema: Any) -> Iterator[tuple[str, Any, bool]]:
        """Yield the schemas in `schema`: pointer, schema, and whether it is required for a
        match."""
        required = schema.get("required") if isinstance(schema, dict) else None
        wanted = {f"/properties/{name}" for name in required or ()}
        for end, part in within(schema):
            if isinstance(part, dict):
                yield place + end, part, end in wanted or end.startswith(_SAME_VALUE)
        with contextlib.suppress(LookupError, AttributeError):
            yield schema["$ref"], target(self._root, schema["$ref"]), True

    def _alone(self, part: Any) -> Any:
        kept = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
        return {**kept, **part}


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None


def _of_schema(schema: Any, asked: dict[str, Any]) -> str:
    space = _LITTLE_SPACE if asked["closed"] else _ANY_SPACE
    if asked["whitespace"] is not None:
        space = asked["whitespace"]
    options: llguidance.JsonCompileOptions = {"whitespace_pattern": space}
    if asked["closed"]:
        # As everywhere else: an answer matches one of them and may match another.
        options["coerce_one_of"] = True
    if not space:
        options = {**options, "whitespace_pattern": None, "whitespace_flexible": False}
    try:
        read = json.dumps(held(schema, closed=asked["closed"]))
    except RecursionError:
        raise ValueError(_DEEP) from None
    return str(llguidance.LLMatcher.grammar_from_json_schema(read, overrides=options))


def _of_regex(text: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_regex(text))


def _in_words(error: str) -> str:
    lines = error.strip().splitlines() or ["no reason given"]
    if error.startswith("NoExtension"):
        return "no text matches it"
    unknown = re.match(r"Unimplemented keys: \[(.*)\]", lines[0])
    if unknown is not None:
        return f"the keywords {unknown[1]} are not supported"
    if lines[0].startswith(_IMPOSSIBLE):
        return "no value matches it:" + lines[0].removeprefix(_IMPOSSIBLE)
    # The error of an expression is at the end, below a picture of the expression.
    told = [line.strip() for line in lines if line.startswith("error: ")]
    if lines[0].endswith("regex parse error:") and told:
        return f"{lines[0].removesuffix(':')}: {told[0].removeprefix('error: ')}"
    return lines[0]
