"""The shapes of a chat's messages and tools, for the documentation.

`lorry.api.messages` and `lorry.api.tools` read them. Other fields of a message are in
`lorry.api.fields`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from lorry.api.bounds import FirstMistake
from lorry.api.shape import BodyShape, NotEmpty

Text = Annotated[str, Field(min_length=1)]


class TextPart(BaseModel):
    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(BaseModel):
    type: Literal["refusal"]
    refusal: str


Content = str | list[TextPart | RefusalPart]


class CalledFunction(BaseModel):
    name: str
    arguments: str | dict[str, Any] = Field(
        default="{}", description="A JSON object, as a string or as it is."
    )


class GivenCall(BaseModel):
    """A call in an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class PromptMessage(BaseModel):
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    reasoning_content: str | None = Field(
        default=None, description="The reasoning before it, for templates that read it."
    )
    reasoning: str | None = Field(default=None, description="Another name for `reasoning_content`.")
    thinking: str | None = Field(default=None, description="Another name for `reasoning_content`.")
    tool_calls: list[GivenCall] | None = None
    function_call: CalledFunction | None = Field(
        default=None, description="The older form of a call."
    )


class ToolMessage(BaseModel):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


class FunctionMessage(BaseModel):
    """The older form of the result of a call."""

    role: Literal["function"]
    content: Content
    name: str | None = None


Message = PromptMessage | AssistantMessage | ToolMessage | FunctionMessage

Messages = Annotated[list[Annotated[dict[str, Any], BodyShape(Message)]], FirstMistake(), NotEmpty]


class Function(BaseModel):
    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema.")
    strict: bool | None = None


class FunctionTool(BaseModel):
    type: Literal["function"]
    function: Function


Tools = Annotated[list[Annotated[dict[str, Any], BodyShape(FunctionTool)]], FirstMistake()]

Functions = Annotated[list[Annotated[dict[str, Any], BodyShape(Function)]], FirstMistake()]


class FunctionName(BaseModel):
    name: str


class FunctionChoice(BaseModel):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(BaseModel):
    mode: Literal["auto", "required"] = "auto"
    tools: list[FunctionChoice]


class AllowedToolsChoice(BaseModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    str | dict[str, Any],
    BodyShape(Literal["none", "auto", "required"] | FunctionChoice | AllowedToolsChoice),
]

FunctionCallChoice = Annotated[
    str | dict[str, Any], BodyShape(Literal["none", "auto"] | FunctionName)
]


class Document(BaseModel):
    """The template decides how to show it."""

    title: str | None = None
    text: str | None = None


Documents = Annotated[list[Annotated[dict[str, Any], BodyShape(Document)]], FirstMistake()]
