"""What a schema is read as, in the forms in which clients send them."""

from __future__ import annotations

from typing import Any

import pytest

from lorry.engine.json_schema import held

TEXT = {"type": "string"}
PERSON = {
    "type": "object",
    "properties": {"name": TEXT, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def test_an_object_of_pydantic_s_is_closed_at_every_depth() -> None:
    schema = {
        "$defs": {"Person": PERSON},
        "type": "object",
        "properties": {
            "lead": {"$ref": "#/$defs/Person"},
            "team": {"type": "array", "items": PERSON},
            "odd": {"anyOf": [PERSON, {"type": "null"}]},
        },
    }
    closed = held(schema, closed=True)
    person = {**PERSON, "additionalProperties": False}
    assert closed["$defs"]["Person"] == person
    assert closed["properties"]["lead"] == {"$ref": "#/$defs/Person"}
    assert closed["properties"]["team"]["items"] == person
    assert closed["properties"]["odd"]["anyOf"] == [person, {"type": "null"}]
    assert closed["additionalProperties"] is False
    assert list(closed["properties"]) == ["lead", "team", "odd"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**PERSON, "additionalProperties": True},
        {**PERSON, "additionalProperties": TEXT},
        {"type": "object", "additionalProperties": TEXT},
        {"enum": [{"properties": 1}]},
        {"const": {"type": "object", "properties": {}}},
        {"type": "object", "properties": {"format": TEXT}, "additionalProperties": False},
    ],
)
def test_what_says_otherwise_stays(schema: dict[str, Any]) -> None:
    assert held(schema, closed=True) == schema


def test_unevaluated_properties_are_what_closing_does() -> None:
    closed = {**PERSON, "additionalProperties": False}
    assert held({**PERSON, "unevaluatedProperties": False}, closed=True) == closed
    assert held({**PERSON, "unevaluatedProperties": True}, closed=True) == PERSON
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert held({"type": "object", "unevaluatedProperties": False}, closed=True) == nothing


def test_parts_of_one_object_know_each_other() -> None:
    schema = {
        "$defs": {"Base": {"properties": {"id": TEXT}, "required": ["id"]}},
        "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"name": TEXT}}],
    }
    closed = held(schema, closed=True)
    assert closed["allOf"] == [
        {"$ref": "#/$defs/copy-0"},
        {"properties": {"name": TEXT, "id": True}, "additionalProperties": False},
    ]
    assert closed["$defs"]["copy-0"] == {
        "properties": {"id": TEXT, "name": True},
        "required": ["id"],
        "additionalProperties": False,
    }
    # By itself the definition is closed without them.
    assert closed["$defs"]["Base"]["properties"] == {"id": TEXT}


def test_a_definition_that_grows_out_of_itself_has_an_end() -> None:
    tree = {"properties": {"left": {"allOf": [{"$ref": "#/$defs/T"}, {"properties": {"n": {}}}]}}}
    closed = held({"$defs": {"T": tree}, "$ref": "#/$defs/T"}, closed=True)
    inner = {"$ref": "#/$defs/copy-0"}
    assert closed["$defs"]["copy-0"]["properties"]["left"]["allOf"][0] == inner
    assert set(closed["$defs"]) == {"T", "copy-0"}


def test_one_part_that_is_open_opens_the_object() -> None:
    parts = [{"properties": {"a": TEXT}}, {"additionalProperties": True}]
    assert held({"allOf": parts}, closed=True) == {"allOf": parts}


def test_a_required_name_stays_possible() -> None:
    schema = {"properties": {"a": TEXT}, "required": ["a", "b"]}
    assert held(schema, closed=True)["properties"] == {"a": TEXT, "b": True}


def test_notes_to_the_reader_are_left_out() -> None:
    noted = {
        "type": "object",
        "properties": {
            "path": {**TEXT, "format": "path"},
            "day": {**TEXT, "format": "date"},
            "tags": {"type": "array", "items": TEXT, "uniqueItems": True},
            "format": {"enum": ["path"]},
        },
        "additionalProperties": False,
    }
    assert held(noted, closed=True)["properties"] == {
        "path": TEXT,
        "day": {**TEXT, "format": "date"},
        "tags": {"type": "array", "items": TEXT},
        "format": {"enum": ["path"]},
    }
    letter = held(noted, closed=False)["properties"]
    assert letter["path"] == TEXT
    assert letter["tags"] == noted["properties"]["tags"]  # type: ignore[index]
