"""Prepares JSON schemas for answers: closes objects and drops annotations.

In JSON Schema, an object may have any property beside those that its schema names, and a small
model goes on inventing some until its tokens are used up. So an object is closed unless the
schema says otherwise (`additionalProperties`, `unevaluatedProperties: true`), as if it had
`unevaluatedProperties: false`: properties that `allOf`, `anyOf`, `oneOf` and `$ref` name for the
same object are allowed. Keywords keep their order, which is the order of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

Schema = Mapping[str, Any]

Names = frozenset[str]
"""Properties that a schema names."""

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
)
"""Formats that llguidance enforces; any other is an annotation."""

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_LISTS = ("prefixItems",)
_OF_ONE = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames")
"""Keywords that hold schemas of other values: by name, in a list, one."""

_SAME = ("allOf", "anyOf", "oneOf")
"""Keywords that hold schemas of the same value."""


def held(schema: Any, *, closed: bool) -> Any:
    """Return `schema` for llguidance. If `closed` is False, only unknown formats are dropped.
    Raises RecursionError if it is nested too deeply."""
    reading = _Reading(schema, closed)
    made = reading.whole(schema)
    if reading.copies:
        made["$defs"] = {**made.get("$defs", {}), **reading.copies}
    return made


def within(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly in `schema`, each with the end of its JSON pointer."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, dict):
            yield from ((f"/{key}/{_escaped(name)}", one) for name, one in value.items())
        elif key in (*_OF_LISTS, *_SAME, "items") and isinstance(value, list):
            yield from ((f"/{key}/{index}", one) for index, one in enumerate(value))
        elif key in _OF_ONE and isinstance(value, dict):
            yield f"/{key}", value


def target(root: Any, reference: object) -> Any:
    """Return what `#` or a JSON pointer refers to in `root`. Raises LookupError."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise LookupError(reference)
    found = root
    for part in unquote(reference[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            raise LookupError(reference)
    # An anchor has no slash, so it is not a pointer.
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError(reference)
    return found


class _Reading:
    def __init__(self, root: Any, closed: bool) -> None:
        self._root = root
        self._closed = closed
        self._copied: dict[tuple[str, Names | None], str] = {}
        self.copies: dict[str, Any] = {}
        """Definitions beside those of the schema."""

    def whole(self, schema: Any) -> Any:
        """Convert `schema` if no other schema describes the same value."""
        return self._part(schema, frozenset())

    def _part(self, schema: Any, beside: Names | None) -> Any:
        """`beside`: properties named by other schemas of the same value; None if one of them is
        open."""
        if not isinstance(schema, dict):
            return schema
        made = {
            key: self._keyword(key, value)
            for key, value in schema.items()
            if not self._is_idle(key, value)
        }
        if not self._closed:
            return made
        said = self._said(schema)
        groups = {
            key: self._names({key: value})
            for key, value in schema.items()
            if key in (*_SAME, "$ref")
        }
        for key in _SAME:
            if isinstance(schema.get(key), list):
                rest = [said, *(names for other, names in groups.items() if other != key)]
                made[key] = self._parts(key, schema[key], _joined([beside, *rest]))
        if "$ref" in schema:
            rest = [said, *(names for other, names in groups.items() if other != "$ref")]
            made["$ref"] = self._referred(schema["$ref"], _joined([beside, *rest]))
        self._close(made, schema, _joined([beside, *groups.values()]))
        return made

    def _parts(self, key: str, parts: Sequence[Any], beside: Names | None) -> list[Any]:
        made = []
        for index, part in enumerate(parts):
            others = beside
            if key == "allOf":
                rest = [one for at, one in enumerate(parts) if at != index]
                others = _joined([beside, self._names(*rest)])
            made.append(self._part(part, others))
        return made

    def _referred(self, reference: Any, beside: Names | None) -> Any:
        """Convert a reference. A definition is closed by itself; if other schemas describe the same
        value, the reference points to a copy that allows their properties."""
        if beside == frozenset():
            return reference
        try:
            found = target(self._root, reference)
        except LookupError:
            return reference
        if (reference, beside) not in self._copied:
            name = f"copy-{len(self._copied)}"
            while name in self._root.get("$defs", ()):
                name += "-"
            self._copied[reference, beside] = name
            self.copies[name] = self._part(found, beside)
        return f"#/$defs/{self._copied[reference, beside]}"

    def _close(self, made: dict[str, Any], schema: Schema, beside: Names | None) -> None:
        unevaluated = made.pop("unevaluatedProperties", None)
        if beside is None or "additionalProperties" in schema or unevaluated is True:
            return
        named = "properties" in schema or "patternProperties" in schema
        alone = not named and unevaluated is False and not any(key in schema for key in _SAME)
        if alone or (named and isinstance(schema.get("properties", {}), dict)):
            known = made.get("properties", {})
            others = sorted((beside | _required(schema)) - set(known))
            made["properties"] = {**known, **dict.fromkeys(others, True)}
            made["additionalProperties"] = False

    def _keyword(self, key: str, value: Any) -> Any:
        if key in _OF_NAMES and isinstance(value, dict):
            return {name: self.whole(one) for name, one in value.items()}
        if key in (*_OF_LISTS, "items") and isinstance(value, list):
            return [self.whole(one) for one in value]
        if key in _SAME and isinstance(value, list) and not self._closed:
            return [self.whole(one) for one in value]
        return self.whole(value) if key in _OF_ONE else value

    def _is_idle(self, key: str, value: Any) -> bool:
        """Return whether a keyword is only a note to the reader."""
        if key == "format":
            return isinstance(value, str) and value not in _FORMATS
        return key == "uniqueItems" and (self._closed or value is False)

    def _names(self, *schemas: Any) -> Names | None:
        """Return the properties that `schemas` of one value name, or None if one of them allows
        others."""
        names: set[str] = set()
        seen: set[str] = set()
        left = list(schemas)
        while left:
            schema = left.pop()
            if not isinstance(schema, dict):
                continue
            said = self._said(schema)
            if said is None:
                return None
            names |= said
            for key in _SAME:
                left += schema[key] if isinstance(schema.get(key), list) else ()
            reference = schema.get("$ref")
            if isinstance(reference, str) and reference not in seen:
                seen.add(reference)
                try:
                    left.append(target(self._root, reference))
                except LookupError:
                    return None
        return frozenset(names)

    def _said(self, schema: Schema) -> Names | None:
        """Like `_names`, from the schema's own keywords only."""
        more = schema.get("additionalProperties", schema.get("unevaluatedProperties", False))
        if more is not False or "patternProperties" in schema:
            return None
        properties = schema.get("properties")
        own = frozenset(properties) if isinstance(properties, dict) else frozenset()
        return own | _required(schema)


def _joined(found: Sequence[Names | None]) -> Names | None:
    names: set[str] = set()
    for one in found:
        if one is None:
            return None
        names |= one
    return frozenset(names)


def _required(schema: Schema) -> Names:
    required = schema.get("required")
    if not isinstance(required, list):
        return frozenset()
    return frozenset(one for one in required if isinstance(one, str))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
