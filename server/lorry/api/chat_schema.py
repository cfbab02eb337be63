"""Body and answer of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from lorry.api.bounds import Texts, TokensOrAll, Top
from lorry.api.message_shapes import (
    Documents,
    FunctionCallChoice,
    Functions,
    Messages,
    ToolChoice,
    Tools,
)
from lorry.api.messages import KEYS
from lorry.api.openai_schema import Idle, PromptLogprobs, SharedAnswer, SharedBody
from lorry.api.sifting import Listed


class ChatBody(SharedBody):
    messages: Annotated[Messages, Listed({*KEYS, "function_call"})] = Field(
        description="`role` (system, developer, user, assistant, tool, function) and "
        "`content`, a string or a list of text parts; they are converted to the form that the "
        "template takes.",
    )
    max_completion_tokens: TokensOrAll | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="auto, none, required, one of the tools, or `allowed_tools` with a mode.",
    )
    parallel_tool_calls: bool | None = Field(
        default=None,
        description="false: at most one call. A forced answer has several only if it is true.",
    )
    tool_prompt: str | None = Field(
        default=None,
        description="The text before the tools, if Lorry's own prompt describes them.",
    )
    functions: Functions | None = Field(
        default=None, description="The older form of `tools`: each is a tool's `function`."
    )
    function_call: FunctionCallChoice | None = Field(
        default=None, description="The older form of `tool_choice`: auto, none or a `name`."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables of the template, such as `enable_thinking`."
    )
    enable_thinking: bool | None = Field(
        default=None, description="For templates with this switch: whether the model reasons."
    )
    include_reasoning: bool | None = Field(
        default=None, description="false: the answer does not contain the reasoning."
    )
    chat_template: str | None = Field(
        default=None,
        description="Instead of the base's; refused unless the server was started with "
        "`--trust-request-chat-template`.",
    )
    add_generation_prompt: bool | None = Field(
        default=None,
        description="false: the prompt ends with the last message, and no turn is begun.",
    )
    continue_final_message: bool | None = Field(
        default=None,
        description="The answer continues the last message, which must be the assistant's.",
    )
    echo: bool | None = Field(
        default=None,
        description="The answer begins with the last message, if that is the assistant's.",
    )
    documents: Documents | None = Field(
        default=None, description="For templates that take documents: `title` and `text` of each."
    )
    add_special_tokens: bool | None = Field(
        default=None,
        description="Whether the tokenizer adds special tokens around the template's text. "
        "Absent: no, as templates write their own.",
    )
    parse_special: bool | None = Field(
        default=None,
        description="Whether special tokens in the text of messages are read as such. Absent: no, "
        "they are plain text, and no message can end itself or speak in another role.",
    )
    modalities: Texts | None = Field(default=None, description="Only text.")
    prediction: Idle = None


class FunctionCall(BaseModel):
    name: str
    arguments: str
    """JSON."""


class ToolCall(BaseModel):
    id: str
    type: str
    function: FunctionCall


class ChatMessage(BaseModel):
    role: str
    content: str | None
    reasoning_content: str | None = None
    """The reasoning before the answer."""
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    """Instead of `tool_calls`, if the request has `functions`."""


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    """stop, length, tool_calls or function_call."""
    stop_reason: int | str | None = None
    """vLLM's: the stop string, or the token of `stop_token_ids`, that ended it."""
    token_ids: list[int] | None = None


class ChatAnswer(SharedAnswer):
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class FunctionDelta(BaseModel):
    name: str | None = None
    """In the first delta of a call."""
    arguments: str | None = None
    """The next piece of the JSON."""


class ToolCallDelta(BaseModel):
    index: int
    id: str | None = None
    """In the first delta of a call, like `type`."""
    type: str | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    """In the last chunk."""
    token_ids: list[int] | None = None


class ChatChunk(SharedAnswer):
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None
    """In the first chunk."""
