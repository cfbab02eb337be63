"""`response_format`, `grammar` and `structured_outputs`, as the documentation has them.

`lorry.api.grammars` and `lorry.api.structure` read them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorry.api.shape import BodyShape, one_of

Schema = dict[str, Any] | str
"""Of JSON, or the same as text."""

Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class TextFormat(BaseModel):
    """Anything."""

    type: Literal["text"]


class JsonFormat(BaseModel):
    """TGI's."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "schema"))

    type: Literal["json"]
    value: Schema | None = Field(default=None, description="A JSON schema.")
    schema_: Schema | None = Field(
        default=None, alias="schema", description="Another name for `value`."
    )


class ObjectFormat(BaseModel):
    """Any object, or one of a schema."""

    type: Literal["json_object"]
    schema_: Schema | None = Field(default=None, alias="schema", description="LoRAX's.")
    value: Schema | None = Field(default=None, description="Another name for `schema`.")


class NamedSchema(BaseModel):
    name: str | None = None
    description: str | None = None
    schema_: Schema = Field(alias="schema", description="A JSON schema.")
    strict: bool | None = None


class SchemaFormat(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(json_schema_extra=one_of("json_schema", "value"))

    type: Literal["json_schema"]
    json_schema: NamedSchema | None = None
    value: Schema | None = Field(default=None, description="The schema alone.")


class RegexFormat(BaseModel):
    """A regular expression in Rust's syntax."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "regex"))

    type: Literal["regex"]
    value: str | None = None
    regex: str | None = Field(default=None, description="Another name for `value`.")


class ChoiceFormat(BaseModel):
    """One of some texts."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "choice"))

    type: Literal["choice"]
    value: Choices | None = None
    choice: Choices | None = Field(default=None, description="Another name for `value`.")


class GrammarFormat(BaseModel):
    """A grammar, in the notation that its text tells, or `syntax`."""

    model_config = ConfigDict(json_schema_extra=one_of("value", "grammar", "definition"))

    type: Literal["grammar"]
    value: str | None = None
    grammar: str | None = Field(default=None, description="Another name for `value`.")
    definition: str | None = Field(default=None, description="Another name for `value`.")
    syntax: Literal["lark", "gbnf", "regex"] | None = None


class NotationFormat(BaseModel):
    """A grammar in Lark's notation, as llguidance has it, or llama.cpp's GBNF."""

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
    """OpenAI's, as Responses have it."""

    type: Literal["json_schema"]


ResponseFormat = Annotated[dict[str, Any], BodyShape(FlatSchemaFormat | AnyFormat)]


class StructuredOutputs(BaseModel):
    """vLLM's: one of the first five."""

    json_: Schema | None = Field(default=None, alias="json", description="A JSON schema.")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = Field(default=None, description="In Lark's notation or GBNF.")
    json_object: bool | None = Field(default=None, description="true: any object.")
    whitespace_pattern: str | None = Field(
        default=None, description="What may stand between two parts of JSON."
    )
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


StructuredField = Annotated[dict[str, Any], BodyShape(StructuredOutputs)]
