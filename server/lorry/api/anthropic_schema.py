"""Bodies and answers of `/v1/messages`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from lorry.api.adapters_used import AdapterUsed
from lorry.api.block_shapes import (
    AnswerBlock,
    BlockChoice,
    BlockDelta,
    FormatField,
    OutputField,
    SchemaTools,
    SystemBlocks,
    ThinkingField,
    Turns,
)
from lorry.api.bounds import Texts, Tokens
from lorry.api.openai_schema import Idle, SharedBody


class CountBody(SharedBody):
    """It also takes chat's fields for sampling."""

    messages: Turns = Field(
        description="`role` (user, assistant, system) and `content`, a string or blocks: text, "
        "tool_use, tool_result, thinking (left out of the prompt). If the last message is the "
        "assistant's, the answer continues it.",
    )
    system: str | SystemBlocks | None = Field(default=None, description="A string, or text blocks.")
    stop_sequences: Texts | None = Field(
        default=None,
        description="Like chat's `stop`; the answer has it as `stop_sequence`.",
    )
    tools: SchemaTools | None = Field(
        default=None,
        description="Tools with an `input_schema`. Anthropic's own services (web_search, "
        "web_fetch, code_execution, tool_search) are not offered to the model.",
    )
    tool_choice: BlockChoice | None = None
    thinking: ThinkingField | None = Field(
        default=None, description="If given, it sets the template's `enable_thinking`."
    )
    output_config: OutputField | None = Field(
        default=None, description="`format`: a `json_schema` that the answer follows."
    )
    output_format: FormatField | None = Field(
        default=None, description="The same format, as older clients of Anthropic's send it."
    )
    chat_template_kwargs: dict[str, Any] | None = None
    cache_control: Idle = None
    context_management: Idle = None
    speed: Idle = None
    inference_geo: Idle = None
    diagnostics: Idle = None
    user_profile_id: Idle = None
    prompt_logprobs: None = Field(default=None, description="Not served.")
    return_token_ids: Literal[False] | None = Field(default=None, description="Not served.")
    container: None = Field(default=None, description="Not served.")
    mcp_servers: list[None] | None = Field(default=None, description="Not served.")


class MessagesBody(CountBody):
    max_tokens: Tokens


class MessageUsage(BaseModel):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class MessageAnswer(BaseModel):
    id: str
    type: str
    role: str
    model: str
    content: list[AnswerBlock]
    stop_reason: str | None
    """end_turn, max_tokens, stop_sequence or tool_use."""
    stop_sequence: str | None
    usage: MessageUsage
    adapters: list[AdapterUsed]


class MessageEvent(BaseModel):
    """One event of a stream; `type` is also the event's name."""

    type: str
    message: MessageAnswer | None = None
    index: int | None = None
    content_block: AnswerBlock | None = None
    delta: BlockDelta | None = None
    usage: dict[str, int] | None = None


class TokenCount(BaseModel):
    input_tokens: int
