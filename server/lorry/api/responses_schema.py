"""Body and answers of `/v1/responses`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorry.api.adapters_used import AdapterUsed
from lorry.api.bodies import Body
from lorry.api.bounds import Texts, Tokens, Top
from lorry.api.format_shapes import ResponseFormat
from lorry.api.item_shapes import (
    CallItem,
    CallOutputItem,
    ChosenFunction,
    ChosenTools,
    ItemLogprob,
    Items,
    MessageItem,
    OutputItem,
    OutputText,
    Reasoning,
    ReasoningField,
    ReasoningItem,
    ReasoningText,
    ResponseChoice,
    ResponseTool,
    ResponseTools,
)
from lorry.api.openai_schema import Idle, SharedBody
from lorry.api.shape import one_of


class TextConfig(Body):
    format: ResponseFormat | None = Field(
        default=None, description="OpenAI's flat `json_schema`, or any `response_format` of chat."
    )
    verbosity: Idle = None


class ResponsesBody(SharedBody):
    """It also takes chat's fields for sampling."""

    model_config = ConfigDict(json_schema_extra=one_of("input", "previous_response_id"))

    input: str | Items | None = Field(
        default=None,
        description="A string, or items: message, function_call, function_call_output, reasoning "
        "(left out of the prompt) and item_reference.",
    )
    instructions: str | None = Field(
        default=None, description="The system message of this response, not of later ones."
    )
    previous_response_id: str | None = Field(
        default=None, description="A stored response whose conversation is continued."
    )
    max_output_tokens: Tokens | None = None
    tools: ResponseTools | None = Field(
        default=None,
        description="Functions, and namespaces of functions. OpenAI's own services (web_search, "
        "file_search, code_interpreter, image_generation) are not offered to the model.",
    )
    tool_choice: ResponseChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    include: Texts | None = Field(
        default=None, description="`message.output_text.logprobs` is served."
    )
    top_logprobs: Top | None = None
    store: bool | None = Field(
        default=None, description="Whether it can be retrieved later; absent: yes."
    )
    metadata: dict[str, Any] | None = Field(default=None, description="Returned unchanged.")
    background: bool | None = Field(
        default=None,
        description="Whether it is made while no client waits: the answer is the response as it "
        "begins, to be retrieved until it has ended. Not beside `stream`.",
    )
    truncation: str | None = Field(
        default=None, description="Accepted; a conversation beyond the context is refused."
    )
    prompt_logprobs: None = Field(default=None, description="Not served.")
    return_token_ids: Literal[False] | None = Field(default=None, description="Not served.")
    conversation: None = Field(default=None, description="Not served.")
    prompt: None = Field(default=None, description="Not served.")
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning: ReasoningField | None = Field(
        default=None, description="`effort` none turns the template's reasoning off."
    )
    client_metadata: Idle = None
    max_tool_calls: Idle = None
    prompt_cache_options: Idle = None


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseError(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    reason: str
    """max_output_tokens."""


class ResponseAnswer(BaseModel):
    id: str
    object: str
    created_at: int
    completed_at: int | None
    status: str
    """in_progress, completed, incomplete, failed or cancelled."""
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: Reasoning
    service_tier: str
    store: bool
    """Whether it can be retrieved later."""
    temperature: float
    text: TextConfig
    tool_choice: str | ChosenFunction | ChosenTools
    tools: list[ResponseTool]
    """The tools that the model was offered."""
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None
    adapters: list[AdapterUsed]


class ResponseEvent(BaseModel):
    """One event of a stream; `type` is also the event's name."""

    type: str
    sequence_number: int
    response: ResponseAnswer | None = None
    """In response.created, .in_progress, .completed, .incomplete and .failed."""
    item: OutputItem | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    """In response.function_call_arguments.done."""
    arguments: str | None = None
    logprobs: list[ItemLogprob] | None = None


class ResponseItems(BaseModel):
    object: str
    data: list[MessageItem | CallItem | CallOutputItem | ReasoningItem | OutputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseDeleted(BaseModel):
    id: str
    object: str
    deleted: bool
