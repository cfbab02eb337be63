"""What a part of a body looks like, where pydantic does not check it.

Messages, tools and the like are read by rooms of their own, which are more patient than a schema
and whose refusals say more. The documentation shows them field by field all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import core_schema


@dataclass(frozen=True, slots=True)
class BodyShape:
    """Shows a value of any type as one of `kind`; what is accepted does not change."""

    kind: Any

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(TypeAdapter(self.kind).core_schema)


def one_of(*names: str) -> dict[str, Any]:
    """`json_schema_extra` of an object that needs one of these fields."""
    return {"anyOf": [{"required": [name]} for name in names]}


NotEmpty = Field(json_schema_extra={"minItems": 1})
"""Of a list: shows that it has an item at least."""
