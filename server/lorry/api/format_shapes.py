"""The shapes of `response_format`, `grammar` and `structured_outputs`, for the documentation.

`lorry.api.grammars` and `lorry.api.structure` read them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorry.api.shape import BodyShape, one_of

Schema = dict[str, Any] | str
"""A JSON schema, or the same as a string."""

Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class TextFormat(BaseModel):
    """Any answer."""

    type: Literal["text"]


class JsonFormat(BaseModel):
    """TGI's form."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "schema"))

    type: Literal["json"]
    value: Schema | None = Field(default=None, description="A JSON schema.")
    schema_: Schema | None = Field(
        default=None, alias="schema", description="Another name for `value`."
    )


class ObjectFormat(BaseModel):
    """Any object, or one that matches a schema."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(default=None, alias="schema", description="LoRAX's.")
    value: Schema | None = Field(default=None, description="Another name for `schema`.")


class NamedSchema(BaseModel):
    name: str | None = None
    description: str | None = None
    schema_: Schema = Field(alias="schema", description="A JSON schema.")
    strict: bool | None = None


class SchemaFormat(BaseModel):
    """OpenAI's form."""

    model_config = ConfigDict(json_schema_extra=one_of("json_schema", "value"))

    type: Literal["json_schema"]
    json_schema: NamedSchema | None = None
    value: Schema | None = Field(default=None, description="The schema itself.")


class RegexFormat(BaseModel):
    """A regular expression in Rust's syntax."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "regex"))

    type: Literal["regex"]
    value: str | None = None
    regex: str | None = Field(default=None, description="Another name for `value`.")


class ChoiceFormat(BaseModel):
    """One of several strings."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "choice"))

    type: Literal["choice"]
    value: Choices | None = None
    choice: Choices | None = Field(default=None, description="Another name for `value`.")


class GrammarFormat(BaseModel):
    """A grammar in the notation `syntax`, or in the one that its text shows."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "grammar", "definition"))

    type: Literal["grammar"]
    value: str | None = None
    grammar: str | None = Field(default=None, description="Another name for `value`.")
    definition: str | None = Field(default=None, description="Another name for `value`.")
    syntax: Literal["lark", "gbnf", "regex"] | None = None


class NotationFormat(BaseModel):
    """A grammar in llguidance's variant of Lark's notation, or in llama.cpp's GBNF."""

    type: Literal["lark", "gbnf"]
    value: str


AnyFormat = (
    TextFormat
    | JsonFormat
    | ObjectFormat
    | SchemaFormat
    | RegexFormat
    | ChoiceFormat
    | GrammarFormat
    | NotationFormat
)

Format = Annotated[dict[str, Any], BodyShape(AnyFormat)]


class FlatSchemaFormat(NamedSchema):
    """OpenAI's form in Responses."""

    type: Literal["json_schema"]


ResponseFormat = Annotated[dict[str, Any], BodyShape(FlatSchemaFormat | AnyFormat)]


class StructuredOutputs(BaseModel):
    """vLLM's form: one of the first five fields."""

    json_: Schema | None = Field(default=None, alias="json", description="A JSON schema.")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = Field(default=None, description="In Lark's notation or GBNF.")
    json_object: bool | None = Field(default=None, description="true: any object.")
    whitespace_pattern: str | None = Field(
        default=None, description="The whitespace allowed between two parts of JSON."
    )
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


StructuredField = Annotated[dict[str, Any], BodyShape(StructuredOutputs)]
