"""Documents the shape of a body's parts that pydantic does not check.

Messages, tools and similar fields are read by modules of their own, which accept more than a schema
would and have better errors. This shows them field by field in the documentation nevertheless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import core_schema


@dataclass(frozen=True, slots=True)
class BodyShape:
    """Documents a value of any type as one of `kind`; this does not change what is accepted."""

    kind: Any

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(TypeAdapter(self.kind).core_schema)


def one_of(*names: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of an object that needs one of these fields."""
    return {"anyOf": [{"required": [name]} for name in names]}


NotEmpty = Field(json_schema_extra={"minItems": 1})
"""Documents a list as not empty."""
