"""The JSON schema of one call to any of several functions.

Each function's parameters are a schema of their own, whose references (`$ref`) start at their own
root. In the schema around them, the references are changed to that root's new place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose value is an object of schemas: its keys are names, not keywords."""

_VALUES = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords whose value is data, whatever it looks like."""


def one_call(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schema of `{"name": ..., "arguments": ...}` for any of the functions, by name.

    Raises RecursionError if one is nested too deeply.
    """
    definitions = {
        f"function{index}": rebased(schema, f"/$defs/function{index}")
        for index, schema in enumerate(parameters.values())
    }
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{key}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, key in zip(parameters, definitions, strict=True)
    ]
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"$defs": definitions, **one}


def rebased(schema: Any, place: str) -> Any:
    """Return the schema with references for `place`, a JSON pointer in another schema."""
    if isinstance(schema, list):
        return [rebased(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and (value + "/").startswith("#/"):
            made[key] = f"#{place}{value[1:]}"
        elif key in _NAMED and isinstance(value, Mapping):
            made[key] = {name: rebased(one, place) for name, one in value.items()}
        else:
            made[key] = value if key in _VALUES else rebased(value, place)
    return made
