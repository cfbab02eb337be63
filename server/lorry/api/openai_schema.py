"""Fields that `/v1/completions` and `/v1/chat/completions` share.

A field that would change the answer and is not served is refused by its name; one that
cannot is accepted, so that OpenAI's own clients work unchanged (`lorry.api.fields`).
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
    Temperature,
    Texts,
    TokensOrAll,
    TokensOrNone,
    TopKOrOff,
    TopOrAll,
    Words,
)
from lorry.api.fields import Strays
from lorry.api.format_shapes import Format, StructuredField
from lorry.api.selection import AdapterField
from lorry.api.sifting import Unused

Idle = Annotated[Any, Field(description="Accepted; it has no bearing on the answer."), Unused()]


class StreamOptions(Body):
    strays: ClassVar[Strays] = Strays.LISTED

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None,
        description="With `include_usage`: usage so far in every chunk, as vLLM has it.",
    )
    include_obfuscation: Idle = None


class SharedBody(Body):
    strays: ClassVar[Strays] = Strays.HARMLESS

    model: str | None = Field(
        default=None,
        description="The base's name, an adapter's, or name@version; absent: the base.",
    )
    adapter: AdapterField = Field(
        default=None,
        description="Any adapter spec; where it is given, null too, it wins over `model`.",
    )
    n: Answers | None = None
    best_of: Answers | None = Field(
        default=None, description="So many answers are made, and the `n` likeliest are given."
    )
    temperature: Temperature | None = None
    top_p: Fraction | None = Field(default=None, description="0: the likeliest token alone.")
    top_k: TopKOrOff | None = None
    min_p: Fraction | None = None
    typical_p: Mass | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: str | Texts | None = Field(
        default=None,
        description="Texts that end the answer and are not shown. One with a special token in it, "
        "as `<|im_end|>`, is looked for in the answer with special tokens, too.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokensOrAll | None = None
    logit_bias: dict[str, float] | None = None
    response_format: Format | None = Field(default=None, description="What the answer must match.")
    min_tokens: TokensOrNone | None = Field(
        default=None,
        description="Before so many tokens neither an end token nor a stop string ends the answer.",
    )
    stop_token_ids: Ids | None = Field(
        default=None,
        description="Tokens that end the answer, beside the base's, and are not shown.",
    )
    include_stop_str_in_output: bool | None = Field(
        default=None, description="Show the stop string, or the token, that ended the answer."
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="false: special tokens are shown, as they are written."
    )
    spaces_between_special_tokens: Idle = None
    bad_words: Words | None = Field(
        default=None,
        description="Words that are not in the answer, with or without a space before.",
    )
    allowed_token_ids: Ids | None = Field(
        default=None, description="No token but these comes; without an end token, to the last."
    )
    structured_outputs: StructuredField | None = Field(
        default=None, description="vLLM's name for `response_format`."
    )
    guided_json: dict[str, Any] | str | None = Field(
        default=None, description="vLLM's older names for it, each by itself."
    )
    guided_regex: str | None = None
    guided_choice: Texts | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = Field(
        default=None, description="What may stand between two parts of `guided_json`'s answer."
    )
    truncate_prompt_tokens: TokensOrAll | None = Field(
        default=None,
        description="So many of the prompt's last tokens are kept; -1: as many as there is room "
        "for beside the answer.",
    )
    prompt_logprobs: TopOrAll | None = Field(
        default=None,
        description="Tell how likely each of the prompt's tokens was, and so many of the likeliest "
        "in its place (-1: the whole vocabulary, where that is not too much); not in a stream.",
    )
    return_token_ids: bool | None = Field(
        default=None, description="Tell the ids of the prompt's and the answer's tokens."
    )
    ignore_eos: bool | None = None
    user: Idle = None
    metadata: Idle = None
    store: Idle = None
    service_tier: Idle = None
    safety_identifier: Idle = None
    prompt_cache_key: Idle = None
    prompt_cache_retention: Idle = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    """None: every prompt is computed."""
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
"""By token id, one for each token of the prompt; null for the first."""


class SharedAnswer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    """The server's version, the base and its quantization: what else an answer depends on."""
    adapters: list[AdapterUsed] | None = None
    """With every whole answer, and with the first and the last chunk of a stream."""
    usage: Usage | None = None
