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
        "`content`, a text or a list of text parts; the template gets them in the form that it "
        "takes.",
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
        description="false: one call at most. A forced answer has several only where it is true.",
    )
    tool_prompt: str | None = Field(
        default=None,
        description="The text in front of the tools, where a prompt of Lorry's carries them.",
    )
    functions: Functions | None = Field(
        default=None, description="The older word for `tools`: each is one's `function`."
    )
    function_call: FunctionCallChoice | None = Field(
        default=None, description="The older word for `tool_choice`: auto, none or a `name`."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables of the template, as `enable_thinking`."
    )
    enable_thinking: bool | None = Field(
        default=None, description="For templates that have this switch: whether the model reasons."
    )
    include_reasoning: bool | None = Field(
        default=None, description="false: the reasoning is not part of the answer."
    )
    chat_template: str | None = Field(
        default=None,
        description="Instead of the base's; refused unless the server was started with "
        "`--trust-request-chat-template`.",
    )
    add_generation_prompt: bool | None = Field(
        default=None,
        description="false: the prompt ends with the last message; nobody's turn is begun.",
    )
    continue_final_message: bool | None = Field(
        default=None,
        description="The answer goes on with the last message, which is the assistant's.",
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
        description="Whether the tokenizer puts special tokens around what the template has made; "
        "absent: no, templates write their own.",
    )
    parse_special: bool | None = Field(
        default=None,
        description="Whether special tokens in the text of messages are those tokens. Absent: no, "
        "they are text, and nothing in a message can end it or speak for somebody else.",
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
    """What a model that reasons said before it answered."""
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    """Instead of `tool_calls`, where `functions` were asked for."""


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
    """With the first delta of a call."""
    arguments: str | None = None
    """What comes next of the JSON."""


class ToolCallDelta(BaseModel):
    index: int
    id: str | None = None
    """With the first delta of a call; so is `type`."""
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
    """With the last chunk."""
    token_ids: list[int] | None = None


class ChatChunk(SharedAnswer):
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None
    """With the first chunk."""
