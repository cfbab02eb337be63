"""Fields that `/v1/completions` and `/v1/chat/completions` share.

A field that is not served and would change the answer is refused by name. One that would not is
accepted, so that OpenAI's own clients work unchanged (`lorry.api.fields`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from lorry.api.adapters_used import AdapterUsed
from lorry.api.bodies import Body
from lorry.api.bounds import (
    Answers,
    Fraction,
    Ids,
    Mass,
    Penalty,
    RepetitionPenalty,
    Seed,
    Speculative,
    Temperature,
    Texts,
    TokensOrAll,
    TokensOrNone,
    TopKOrOff,
    TopOrAll,
    Words,
)
from lorry.api.caching import CachingBody
from lorry.api.fields import Strays
from lorry.api.format_shapes import Format, StructuredField
from lorry.api.selection import AdapterField, User
from lorry.api.sifting import Unused

Idle = Annotated[Any, Field(description="Accepted; it has no effect on the answer."), Unused()]


class StreamOptions(Body):
    strays: ClassVar[Strays] = Strays.LISTED

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None,
        description="With `include_usage`: the usage so far in every chunk, as in vLLM.",
    )
    include_obfuscation: Idle = None


class SharedBody(CachingBody):
    strays: ClassVar[Strays] = Strays.HARMLESS

    model: str | None = Field(
        default=None,
        description="The base's name, an adapter's, or name@version; absent: the base.",
    )
    adapter: AdapterField = Field(
        default=None,
        description="Any adapter spec; if given, even as null, it takes precedence over `model`.",
    )
    n: Answers | None = None
    best_of: Answers | None = Field(
        default=None, description="Generate this many answers and return the `n` likeliest."
    )
    temperature: Temperature | None = None
    top_p: Fraction | None = Field(default=None, description="0: only the likeliest token.")
    top_k: TopKOrOff | None = None
    min_p: Fraction | None = None
    typical_p: Mass | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    speculative: Speculative = None
    stop: str | Texts | None = Field(
        default=None,
        description="Strings that end the answer and are not shown. One that contains a special "
        "token, such as `<|im_end|>`, is also searched for in the answer with special tokens.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokensOrAll | None = None
    logit_bias: dict[str, float] | None = None
    response_format: Format | None = Field(default=None, description="The answer must match it.")
    min_tokens: TokensOrNone | None = Field(
        default=None,
        description="No end token and no stop string ends the answer before this many tokens.",
    )
    stop_token_ids: Ids | None = Field(
        default=None,
        description="Tokens that end the answer, beside the base's, and are not shown.",
    )
    include_stop_str_in_output: bool | None = Field(
        default=None, description="Show the stop string or the token that ended the answer."
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="false: special tokens are shown as text."
    )
    spaces_between_special_tokens: Idle = None
    bad_words: Words | None = Field(
        default=None,
        description="Words that must not be in the answer, with or without a space before them.",
    )
    allowed_token_ids: Ids | None = Field(
        default=None, description="Only these tokens may come; add an end token, or none ends it."
    )
    structured_outputs: StructuredField | None = Field(
        default=None, description="vLLM's name for `response_format`."
    )
    guided_json: dict[str, Any] | str | None = Field(
        default=None, description="vLLM's older names for it."
    )
    guided_regex: str | None = None
    guided_choice: Texts | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = Field(
        default=None, description="The whitespace allowed between parts of `guided_json`'s answer."
    )
    truncate_prompt_tokens: TokensOrAll | None = Field(
        default=None,
        description="Keep this many of the prompt's last tokens; -1: as many as fit beside the "
        "answer.",
    )
    prompt_logprobs: TopOrAll | None = Field(
        default=None,
        description="Return the log-probabilities of each prompt token and of this many of the "
        "likeliest in its place (-1: the whole vocabulary, if that is not too much). Not in a "
        "stream.",
    )
    return_token_ids: bool | None = Field(
        default=None, description="Return the ids of the prompt's and the answer's tokens."
    )
    ignore_eos: bool | None = None
    user: User = None
    metadata: Idle = None
    store: Idle = None
    service_tier: Idle = None
    safety_identifier: Idle = None
    prompt_cache_key: Idle = None
    prompt_cache_retention: Idle = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    """Found in the prefix cache."""
    audio_tokens: int


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class PromptLogprob(BaseModel):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id, one per token of the prompt; null for the first."""


class SharedAnswer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    """The server's version, the base and its quantization: what an answer depends on beside the
    request."""
    adapters: list[AdapterUsed] | None = None
    """In every complete answer, and in the first and the last chunk of a stream."""
    usage: Usage | None = None
