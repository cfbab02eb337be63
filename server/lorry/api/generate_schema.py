"""Bodies and answers of `/generate` and similar routes, with the fields of TGI and LoRAX. Their
clients send every field they know as an explicit null."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from lorry.api.adapters_used import AdapterUsed
from lorry.api.bodies import Body
from lorry.api.bounds import (
    Answers,
    Fraction,
    Mass,
    Penalty,
    RepetitionPenalty,
    Seed,
    Speculative,
    Temperature,
    Texts,
    Tokens,
    Top,
    TopK,
)
from lorry.api.caching import CachingBody
from lorry.api.fields import Strays
from lorry.api.format_shapes import Format
from lorry.api.merging import MergedAdapters
from lorry.api.prompt_list import SpecialTokens
from lorry.api.selection import AdapterField, User


class Parameters(CachingBody):
    strays: ClassVar[Strays] = Strays.LISTED

    max_new_tokens: Tokens | None = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: Mass | None = None
    min_p: Fraction | None = None
    typical_p: Mass | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: str | Texts | None = Field(
        default=None,
        description="Strings that end the answer and are shown, without special tokens. One that "
        "contains a special token, such as `<|im_end|>`, is also searched for in the answer with "
        "special tokens.",
    )
    return_full_text: bool | None = None
    truncate: Tokens | None = None
    add_special_tokens: SpecialTokens = None
    best_of: Answers | None = None
    top_n_tokens: Top | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    ignore_eos_token: bool | None = None
    speculative: Speculative = None
    grammar: Format | None = Field(default=None, description="The answer must match it.")
    response_format: Format | None = Field(
        default=None, description="LoRAX's and OpenAI's name for `grammar`."
    )
    adapter_id: AdapterField = Field(
        default=None, description="LoRAX's and TGI's name for `adapter`."
    )
    adapter_source: str | None = Field(
        default=None, description="Only `local`: requests cannot fetch adapters."
    )
    api_token: str | None = Field(
        default=None, description="A hub's token; unused, as nothing is fetched."
    )
    watermark: bool | None = Field(default=None, description="Not served: true is refused.")
    merged_adapters: MergedAdapters | None = Field(
        default=None,
        description="Merged into one adapter, as in LoRAX; for a sum, give `adapter` a list.",
    )
    return_k_alternatives: int | None = Field(
        default=None, description="Not served: use `top_n_tokens`."
    )


class GenerateBody(Body):
    strays: ClassVar[Strays] = Strays.HARMLESS

    inputs: Annotated[str, Field(description="The prompt.", json_schema_extra={"minLength": 1})]
    adapter: AdapterField = None
    parameters: Parameters | None = None
    user: User = None
    stream: bool | None = None


class PrefillToken(BaseModel):
    id: int
    text: str
    logprob: float | None


class Token(BaseModel):
    id: int
    text: str
    logprob: float
    special: bool
    skipped: bool | None = None
    """LoRAX's clients require it; never true here."""


class BestOfSequence(BaseModel):
    """An answer of `best_of` that was not chosen."""

    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class Details(BaseModel):
    finish_reason: str = Field(description="length, eos_token or stop_sequence")
    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompt, found in the prefix cache.")
    generated_tokens: int
    draft_tokens: int = Field(description="Drafted by speculative decoding.")
    accepted_tokens: int = Field(description="Of those, the ones that were right.")
    skipped_tokens: int
    seed: int | None = Field(description="null for a greedy answer")
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None
    best_of_sequences: list[BestOfSequence] | None = None


class GenerateAnswer(BaseModel):
    generated_text: str
    adapters: list[AdapterUsed]
    details: Details | None = None


class StreamDetails(BaseModel):
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    draft_tokens: int
    accepted_tokens: int
    input_length: int
    skipped_tokens: int
    seed: int | None


class StreamEvent(BaseModel):
    index: int
    token: Token
    generated_text: str | None
    details: StreamDetails | None
    top_tokens: list[Token] | None = None
    adapters: list[AdapterUsed] | None = None
    """In the first and the last event."""
