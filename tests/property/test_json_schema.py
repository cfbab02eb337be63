"""Schemas that are closed: an answer has the names that its schema knows, and loses none."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lorry.engine.json_schema import held, target

NAMES = st.sampled_from("abc")
DEFS = {"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}


def schemas(*, choices: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Of objects in objects; without `choices`, what is said holds for every answer."""

    def more(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        parts = st.lists(inner, min_size=1, max_size=3)
        optional: dict[str, Any] = {
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "required": st.lists(NAMES, max_size=1),
            "allOf": parts,
        }
        if choices:
            optional["anyOf"] = parts
        return st.fixed_dictionaries({}, optional=optional)

    leaves = st.sampled_from([{}, {"type": "object"}, *DEFS])
    whole = st.recursive(leaves, more, max_leaves=8)
    return st.builds(
        lambda one, x, y: {**one, "$defs": {"x": x, "y": y}},
        whole,
        whole,
        whole,
    )


VALUES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.just({}), lambda inner: st.dictionaries(st.sampled_from("abcz"), inner, max_size=3)
)


def valid(root: Any, schema: Any, value: dict[str, Any], refs: tuple[str, ...] = ()) -> bool:
    """By the letter of JSON Schema, as far as `schemas` go."""
    if isinstance(schema, bool):
        return schema
    ref = schema.get("$ref")
    # A reference that leads to itself says nothing.
    new = ref is not None and ref not in refs
    if new and not valid(root, target(root, ref), value, (*refs, ref)):
        return False
    properties = schema.get("properties", {})
    return (
        all(name in value for name in schema.get("required", ()))
        and all(valid(root, one, value[name]) for name, one in properties.items() if name in value)
        and (schema.get("additionalProperties", True) or set(value) <= set(properties))
        and all(valid(root, one, value, refs) for one in schema.get("allOf", ()))
        and any(valid(root, one, value, refs) for one in schema.get("anyOf", (True,)))
    )


def named(root: Any, schema: Any, value: dict[str, Any]) -> bool:
    """Whether every name in `value` is one that its schemas have, where they have some."""
    parts: list[Any] = []
    refs: set[str] = set()
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, bool):
            continue
        parts.append(one)
        left += [*one.get("allOf", ()), *one.get("anyOf", ())]
        if "$ref" in one and one["$ref"] not in refs:
            refs.add(one["$ref"])
            left.append(target(root, one["$ref"]))
    known = {
        name for one in parts for name in (*one.get("properties", ()), *one.get("required", ()))
    }
    if any("properties" in one for one in parts) and not set(value) <= known:
        return False
    return all(
        named(root, one["properties"][name], inner)
        for name, inner in value.items()
        for one in parts
        if name in one.get("properties", ())
    )


@given(schema=schemas(choices=True), value=VALUES)
def test_what_it_allows_the_letter_allows(schema: dict[str, Any], value: dict[str, Any]) -> None:
    closed = held(schema, closed=True)
    if valid(closed, closed, value):
        assert valid(schema, schema, value)


@given(schema=schemas(choices=False), value=VALUES)
def test_it_allows_what_the_letter_does_of_the_names_that_it_knows(
    schema: dict[str, Any], value: dict[str, Any]
) -> None:
    closed = held(schema, closed=True)
    assert valid(closed, closed, value) == (
        valid(schema, schema, value) and named(schema, schema, value)
    )


@given(schema=schemas(choices=True), value=VALUES)
def test_by_the_letter_nothing_changes(schema: dict[str, Any], value: dict[str, Any]) -> None:
    assert held(schema, closed=False) == schema
