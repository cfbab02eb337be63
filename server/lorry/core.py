"""The plain data that every floor shares. No torch, no behaviour.

A request becomes a `Sequence` (the scheduler's), a step takes a `Batch` of `Row`s
(the runner's), the answer is a stream of `TokenEvent`s (the HTTP side's).

`Capacity`, `EngineStats`, `Request` and `TokenEvent` cross the boundary between the HTTP
side and the engine. They are immutable values that can be serialised, and so is all that
they hold: the engine may be in another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lorry.constraint import Constraint
from lorry_adapters.errors import Problem, Remedy


class FinishReason(StrEnum):
    STOP = "stop"
    """An end-of-text token. Stop strings are found on the HTTP side, which then cancels."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Pooling(StrEnum):
    """What a request wants of its prompt, instead of tokens that follow it."""

    LAST = "last"
    """The last token's hidden state."""
    MEAN = "mean"
    """The mean of all tokens' hidden states, virtual ones left out."""
    CLASSIFY = "classify"
    """What a classifier's head makes of the last token's."""


class FailureCode(StrEnum):
    """Why a request ended with an error."""

    STEP_FAILED = "step_failed"
    """The step that ran it raised. `reason`: the name of the exception's class."""
    ADAPTER_FAILED = "adapter_failed"
    """The computation of its adapters raised: `digests` are at fault. `reason` as above."""
    ADAPTER_BROKEN = "adapter_broken"
    """An adapter cannot be loaded. `reason` is for people."""
    FILES_BROKEN = "files_broken"
    """The files of `digests` are bad. `reason` is for people."""
    STORE_UNUSABLE = "store_unusable"
    """The adapters' folder cannot be read. `reason` is for people."""
    OUT_OF_MEMORY = "out_of_memory"
    """`reason` is for people."""
    OVERFLOW = "overflow"
    """A log-probability or a vector is not finite."""
    GRAMMAR_REFUSED = "grammar_refused"
    """Its grammar or its rules cannot be followed. `reason` is for people."""
    GRAMMAR_UNSUPPORTED = "grammar_unsupported"
    """The tokenizer cannot follow any grammar. `reason` is for people."""
    GRAMMARS_BUSY = "grammars_busy"
    """Too many grammars are in use. `reason` is for people."""
    GRAMMAR_FAILED = "grammar_failed"
    """The server's own fault. `reason` is for people."""
    ENGINE_FAILED = "engine_failed"
    """The engine failed between two steps."""
    ENGINE_STOPPED = "engine_stopped"
    """The engine ended before the request did."""
    ENGINE_LOST = "engine_lost"
    """The engine's process ended before the request did."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base model, as far as the HTTP side needs to know it."""

    name: str
    """What the API calls it."""
    other_names: tuple[str, ...]
    """What it is asked for by, too."""
    repository: str | None
    """Its id on the hub, where it has one."""
    source: str
    """As the user gave it."""
    quantization: str
    eos_token_ids: frozenset[int]
    max_model_len: int
    """Tokens, prompt and answer together."""
    vocab_size: int
    """Tokens that it has embeddings and logits for."""
    about: Mapping[str, Any]
    """As `/info` shows it: JSON."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value. The HTTP side says it in words and gives advice."""

    code: FailureCode
    reason: str = ""
    param: str | None = None
    """The request's field that is at fault."""
    digests: tuple[str, ...] = ()
    """Of the adapters that are at fault."""
    remedy: Remedy | None = None
    """What would help, if `reason` is for people."""
    facts: Mapping[str, str | int] = field(default_factory=dict)
    """The remedy's facts."""

    @property
    def problem(self) -> Problem:
        """`reason` with its remedy."""
        return Problem(self.reason, self.remedy, **self.facts)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are drawn. Every field is resolved and checked by the HTTP side."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy: the arg max, and none of the filters below matters."""
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    """CTRL's, over prompt and answer: arXiv:1909.05858, section 4.1."""
    frequency_penalty: float = 0.0
    """OpenAI's, over the answer."""
    presence_penalty: float = 0.0
    seed: int = 0
    """The token at position p is drawn by the uniform number of (seed, p): it depends
    neither on the batch nor on how often the request was preempted."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer: the base's, unless end of text is ignored, and those that
    the request names."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0
    """How many of the likeliest tokens to report beside the drawn one."""
    prompt_logprobs: int | None = None
    """How many of the likeliest tokens to report in the place of each of the prompt's; None
    for no log-probabilities of the prompt."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much one request can have at most. It never changes while the engine lives."""

    max_model_len: int
    """Virtual tokens, prompt and answer together."""
    kv_blocks: int
    """In the whole KV cache."""
    block_size: int
    """Tokens in one of them."""
    slots: int
    """Adapters in one step, and so in one request."""

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One adapter of one request."""

    name: str
    """For metrics and messages; the digest is its identity."""
    digest: str
    scale: float
    """0: the base; the adapter leaves no trace."""
    start: int = 0
    """Absolute position, virtual tokens counted, of the first token that it changes. Above 0
    only for an activated LoRA."""
    virtual_tokens: int = 0
    """Positions that it takes in front of the prompt."""
    is_prefix: bool = False
    """True if they are keys and values, put in the cache ready made; else they are
    embeddings, which run through the model like tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """The HTTP side holds its adapters' content until the final event."""

    id: str
    prompt_ids: tuple[int, ...]
    """Never empty."""
    params: SamplingParams
    adapters: tuple[AdapterUse, ...]
    arrival: float
    """`time.monotonic()` seconds, by the client."""
    constraint: Constraint | None = None
    pooling: Pooling | None = None
    """Set: the one event of the request carries a `vector`, and no token is drawn."""
    caller: str = ""
    """Whose request it is, for those who share the server fairly; it means nothing else."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float
    """Of the model's own distribution, before temperature, penalties and filters."""
    top: tuple[TokenLogprob, ...] = ()
    """Of a prompt's token: the likeliest in its place, likeliest first."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A new token of an answer."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()
    """The `top_logprobs` likeliest in its place, likeliest first."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's news for one request. The last has a `finish`; there is exactly one such."""

    request_id: str
    drawn: tuple[Drawn, ...] = ()
    """In order. Empty where a request ends without a new token (cancelled, error, vector).
    A `finish` is of the last of them."""
    prompt: tuple[TokenLogprob | None, ...] = ()
    """With the first token of a request that asked for `prompt_logprobs`: one entry per
    prompt token, None for the first, which nothing predicts."""
    finish: FinishReason | None = None
    failure: Failure | None = None
    """With `finish` ERROR."""
    vector: tuple[float, ...] = ()
    """With `finish` STOP of a request with a `pooling`."""
    started: float = 0.0
    """With a token or a vector: when the step began in which the request first ran,
    `time.monotonic()` seconds."""


@dataclass(frozen=True, slots=True)
class SlotUse:
    """One adapter of one row: where its weights are, and how strongly they count."""

    slot: int
    """1 or more; slot 0 is the base model and is never listed."""
    scale: float
    start: int = 0
    """Absolute position of the first token that it changes; those before it run as the base."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Asks for the token that follows the last one of a row."""

    params: SamplingParams
    prompt: AbstractSequence[int]
    answer: AbstractSequence[int]
    """Tokens drawn so far; its length is the position in the answer."""
    allowed: AbstractSequence[int] | None
    """The mask of what may come: 32-bit words, bit i of word w is token 32 * w + i. None where
    any token may come, and as long as `mask` was not called."""
    mask: Callable[[], AbstractSequence[int] | None] | None = None
    """Of a request with a constraint: gives `allowed`. It is made while the model runs, so call
    it afterwards. Whatever it raises is the request's own error."""


@dataclass(frozen=True, slots=True)
class Row:
    """The part of one sequence that runs in this step."""

    request_id: str
    token_ids: AbstractSequence[int]
    """New tokens, at least one."""
    start: int
    """Absolute position of the first of them = tokens already in the KV cache. A sequence
    whose adapter brings a prefix begins right behind it, and the runner puts the prefix in
    the cache whenever a row starts there."""
    blocks: AbstractSequence[int]
    """KV blocks of the whole sequence, in order; enough for start + len(token_ids)."""
    adapters: tuple[SlotUse, ...]
    sample: Sample | None
    """None while a prompt is only partly in the cache."""
    prompt_targets: AbstractSequence[int] | None = None
    """For prompt logprobs: the token that follows each of `token_ids` in the prompt, the
    virtual ones left out; one shorter than that where the chunk ends the prompt."""
    virtual: int = 0
    """So many of `token_ids`, the first ones, are virtual: their ids mean nothing, their
    embeddings are rows `start` and following of an adapter's prompt."""
    pooling: Pooling | None = None
    """MEAN: of every row of the prompt; the others: of the one that ends it."""
    prompt_top: int = 0
    """How many of the likeliest tokens to tell beside each of `prompt_targets`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs. Built by the scheduler, consumed by the runner."""

    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class RowResult:
    """What the runner says of one row, in the batch's order."""

    drawn: tuple[Drawn, ...] = ()
    """In order; empty where the row had no `sample`."""
    prompt: tuple[TokenLogprob, ...] = ()
    """One per `prompt_targets`."""
    vector: tuple[float, ...] = ()
    """Of a row with a `pooling`; of MEAN the sum over the row's tokens."""
    error: Exception | None = None
    """What the row's `Sample.mask` raised."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot that the engine thread replaces after every step; anyone may read it."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_block_size: int = 0
    """Tokens per block."""
    slots_total: int = 0
    """Device slots beside the base's."""
    resident: tuple[str, ...] = ()
    """Digests in device slots."""
    running_adapters: tuple[str, ...] = ()
    """Names in use by running requests, sorted."""
    waiting_adapters: tuple[str, ...] = ()
    steps: int = 0
    loads: int = 0
    """Adapters copied to a slot, ever."""
    evictions: int = 0
    preemptions: int = 0
    failed_steps: int = 0
    slot_bytes: int = 0
    """Reserved for the slots so far."""
