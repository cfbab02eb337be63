"""The shapes of items and tools of `/v1/responses` and its answers, for the documentation.
`lorry.api.response_items` reads them, `response_output` makes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from lorry.api.bounds import FirstMistake
from lorry.api.chat_schema import TopLogprob
from lorry.api.message_shapes import RefusalPart, Text, TextPart
from lorry.api.shape import BodyShape


class ItemLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class GivenText(TextPart):
    """`annotations` and `logprobs` come from an answer that is sent back."""

    annotations: list[dict[str, Any]] | None = None
    logprobs: list[ItemLogprob] | None = None


Parts = list[GivenText | RefusalPart]


class MessageItem(BaseModel):
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts


class CallItem(BaseModel):
    type: Literal["function_call"]
    id: str | None = None
    status: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str = Field(description="JSON.")


class CallOutputItem(BaseModel):
    type: Literal["function_call_output"]
    id: str | None = None
    status: str | None = None
    call_id: str
    output: str | Parts


class ReasoningItem(BaseModel):
    """Left out of the prompt."""

    type: Literal["reasoning"]
    id: str | None = None


class ItemReference(BaseModel):
    """An item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: str


Items = Annotated[
    list[
        Annotated[
            dict[str, Any],
            BodyShape(MessageItem | CallItem | CallOutputItem | ReasoningItem | ItemReference),
        ]
    ],
    FirstMistake(),
]


class ResponseFunction(BaseModel):
    type: Literal["function"]
    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema.")
    strict: bool | None = None


class Namespace(BaseModel):
    """Functions that are called by the names of the namespace and the function."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: list[ResponseFunction]


class HostedService(BaseModel):
    """One of the vendor's own services; it is left out."""

    type: str = Field(pattern="^(web_search|file_search|code_interpreter|image_generation)")


ResponseTool = ResponseFunction | Namespace

ResponseTools = Annotated[
    list[Annotated[dict[str, Any], BodyShape(ResponseTool | HostedService)]], FirstMistake()
]


class ChosenFunction(BaseModel):
    type: Literal["function"]
    name: str
    namespace: str | None = None


class ChosenTools(BaseModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenFunction]


ResponseChoice = Annotated[
    str | dict[str, Any],
    BodyShape(Literal["none", "auto", "required"] | ChosenFunction | ChosenTools),
]


class Reasoning(BaseModel):
    effort: str | None = Field(
        default=None, description="none: turns the template's reasoning off."
    )
    summary: str | None = None


ReasoningField = Annotated[dict[str, Any], BodyShape(Reasoning)]


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[None] = Field(description="There are none.")
    logprobs: list[ItemLogprob]


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: str
    content: list[OutputText]


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"]
    status: str
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str = Field(description="JSON.")


class OutputReasoning(BaseModel):
    id: str
    type: Literal["reasoning"]
    summary: list[None] = Field(description="There are none.")
    content: list[ReasoningText]


OutputItem = OutputMessage | OutputCall | OutputReasoning
