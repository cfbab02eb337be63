"""The shapes of blocks and tools of `/v1/messages` and its answers, for the documentation.
`lorry.api.anthropic_messages` reads them, `anthropic_output` makes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from lorry.api.bounds import FirstMistake
from lorry.api.shape import BodyShape, NotEmpty


class TextBlock(BaseModel):
    type: Literal["text"]
    text: str


class ThinkingBlock(BaseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="Empty: nothing is signed.")


class ToolUseBlock(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class GivenThinking(BaseModel):
    """Left out of the prompt."""

    type: Literal["thinking", "redacted_thinking"]


class ToolResultBlock(BaseModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None


class UserTurn(BaseModel):
    role: Literal["user"]
    content: str | list[TextBlock | ToolResultBlock]


class AssistantTurn(BaseModel):
    role: Literal["assistant"]
    content: str | list[TextBlock | ToolUseBlock | GivenThinking]


class SystemTurn(BaseModel):
    role: Literal["system"]
    content: str | list[TextBlock]


Turns = Annotated[
    list[Annotated[dict[str, Any], BodyShape(UserTurn | AssistantTurn | SystemTurn)]],
    FirstMistake(),
    NotEmpty,
]

SystemBlocks = Annotated[list[Annotated[dict[str, Any], BodyShape(TextBlock)]], FirstMistake()]


class SchemaTool(BaseModel):
    type: Literal["custom"] | None = None
    name: str = Field(min_length=1)
    description: str | None = None
    input_schema: dict[str, Any] | None = Field(default=None, description="A JSON schema.")
    strict: bool | None = None


class HostedTool(BaseModel):
    """One of the vendor's own services; it is left out."""

    type: str = Field(pattern="^(web_search|web_fetch|code_execution|tool_search)")
    name: str | None = None


SchemaTools = Annotated[
    list[Annotated[dict[str, Any], BodyShape(SchemaTool | HostedTool)]], FirstMistake()
]


class AnyTool(BaseModel):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedTool(BaseModel):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


BlockChoice = Annotated[dict[str, Any], BodyShape(AnyTool | NamedTool)]


class Thinking(BaseModel):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


ThinkingField = Annotated[dict[str, Any], BodyShape(Thinking)]


class OutputFormat(BaseModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    format: OutputFormat | None = None


FormatField = Annotated[dict[str, Any], BodyShape(OutputFormat)]
OutputField = Annotated[dict[str, Any], BodyShape(OutputConfig)]


class BlockDelta(BaseModel):
    """The `delta` of `content_block_delta` has `text`, `thinking` or `partial_json`, according to
    its type. That of `message_delta` has the reason for the answer's end."""

    type: Literal["text_delta", "thinking_delta", "input_json_delta"] | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
