"""Types of the numbers in a request: the range is checked, documented and in the error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Within:
    """A finite number from `low` to `high`. With `above`, `low` itself is refused."""

    low: float
    high: float
    above: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        low = "exclusiveMinimum" if self.above else "minimum"
        return {**handler(schema), low: self.low, "maximum": self.high}

    def _check(self, value: float) -> float:
        enough = value > self.low if self.above else value >= self.low
        if enough and value <= self.high and math.isfinite(value):
            return value
        where = f"above {self.low:g} and at most" if self.above else f"from {self.low:g} to"
        raise PydanticCustomError(
            "range", "must be {where} {high}", {"where": where, "high": f"{self.high:.15g}"}
        )


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number. It may be written `5.0`, which JSON does not distinguish from `5`."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    @staticmethod
    def _read(value: object) -> object:
        return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, slots=True)
class FirstMistake:
    """A list of which only the first wrong item is reported, not the million that may follow."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        schema = handler(source)
        assert schema["type"] == "list"
        return core_schema.list_schema(schema.get("items_schema"), fail_fast=True)


MAX_TOKENS = 2**31 - 1
"""Beyond any model; the model's own length is checked once the prompt is known."""

ALL_ROOM = -1

MAX_ANSWERS = 16
"""The most of `n` and `best_of`."""

MAX_TOP = 20
"""The most of `top_logprobs` and similar fields: OpenAI's limit."""

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000

Tokens = Annotated[int, Whole(), Within(1, MAX_TOKENS)]
TokensOrNone = Annotated[int, Whole(), Within(0, MAX_TOKENS)]
TokensOrAll = Annotated[int, Whole(), Within(-1, MAX_TOKENS)]
"""`ALL_ROOM` is as many as fit in the context, as in llama.cpp and LM Studio."""
Temperature = Annotated[float, Within(0, 100)]
TopK = Annotated[int, Whole(), Within(0, MAX_TOKENS)]
TopKOrOff = Annotated[int, Whole(), Within(-1, MAX_TOKENS)]
Mass = Annotated[float, Within(0, 1, above=True)]
"""A probability mass to keep; 1 keeps all."""
Fraction = Annotated[float, Within(0, 1)]
RepetitionPenalty = Annotated[float, Within(0, 100, above=True)]
Penalty = Annotated[float, Within(-2, 2)]
Seed = Annotated[int, Whole(), Within(-(2**63), 2**64 - 1)]
Answers = Annotated[int, Whole(), Within(1, MAX_ANSWERS)]
Top = Annotated[int, Whole(), Within(0, MAX_TOP)]
TopOrAll = Annotated[int, Whole(), Within(-1, MAX_TOP)]
"""-1 is the whole vocabulary."""
Texts = Annotated[list[str], FirstMistake()]
TokenId = Annotated[int, Field(json_schema_extra={"minimum": 0})]
"""The vocabulary's size is checked later."""
Words = Annotated[list[Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]], FirstMistake()]
Ids = Annotated[list[TokenId], FirstMistake()]
Objects = Annotated[list[dict[str, Any]], FirstMistake()]

Speculative = Annotated[
    bool | None,
    Field(
        description="Whether tokens are drafted and checked together; absent: as `--speculative` "
        "says. No answer depends on it."
    ),
]
