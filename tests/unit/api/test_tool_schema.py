"""Functions' schemas inside the schema of a call."""

from __future__ import annotations

from typing import Any

import pytest

from lorry.api.tool_schema import one_call, rebased

TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}, "$ref": {"type": "string"}},
    "required": ["root"],
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "default": {"$ref": "#/x"}},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["value"],
        }
    },
}
SELF = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}


def at(schema: Any, reference: str) -> Any:
    """What a reference leads to."""
    for key in reference.removeprefix("#").split("/")[1:]:
        schema = schema[key]
    return schema


def test_references_lead_where_they_led() -> None:
    schema = one_call({"tree": TREE, "list": SELF})
    tree, linked = (one["properties"] for one in schema["anyOf"])
    assert (tree["name"], linked["name"]) == ({"const": "tree"}, {"const": "list"})
    inside = at(schema, tree["arguments"]["$ref"])
    node = at(schema, inside["properties"]["root"]["$ref"])
    assert node["required"] == ["value"]
    assert at(schema, node["properties"]["children"]["items"]["$ref"]) == node
    inside = at(schema, linked["arguments"]["$ref"])
    assert at(schema, inside["properties"]["next"]["anyOf"][0]["$ref"]) == inside


def test_one_function_needs_no_choice() -> None:
    assert one_call({"tree": TREE})["properties"]["name"] == {"const": "tree"}


def test_names_and_data_are_no_references() -> None:
    made = rebased(TREE, "/x")
    assert made["properties"]["$ref"] == {"type": "string"}
    assert (
        made["$defs"]["Node"]["properties"]["value"] == TREE["$defs"]["Node"]["properties"]["value"]
    )  # type: ignore[index]


def test_what_is_nested_without_end_is_told() -> None:
    deep: dict[str, object] = {}
    for _ in range(10_000):
        deep = {"not": deep}
    with pytest.raises(RecursionError):
        one_call({"f": deep})


@pytest.mark.parametrize("reference", ["#anchor", "other.json#/$defs/X", "https://example.com/x"])
def test_what_does_not_begin_at_the_root_stays_as_it_is(reference: str) -> None:
    assert rebased({"$ref": reference}, "/x") == {"$ref": reference}
