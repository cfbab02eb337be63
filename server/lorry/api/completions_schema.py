"""Body and answer of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from lorry.api.bounds import Top
from lorry.api.openai_schema import PromptLogprobs, SharedAnswer, SharedBody
from lorry.api.prompt_list import SpecialTokens

_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

PromptField = Annotated[
    Any,
    WithJsonSchema(
        {
            "title": "Prompt",
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ],
        }
    ),
]


class CompletionsBody(SharedBody):
    prompt: PromptField = Field(description="A string, its token ids, or a list of either.")
    echo: bool | None = None
    logprobs: Top | None = None
    suffix: str | None = Field(default=None, description="Not served: refused.")
    add_special_tokens: SpecialTokens = None


class CompletionLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    """vLLM's: the stop string, or the token of `stop_token_ids`, that ended it."""
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionAnswer(SharedAnswer):
    choices: list[CompletionChoice]
