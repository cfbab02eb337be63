"""Plain data for all modules. No torch, no behaviour.

A request becomes a `Sequence` (the scheduler's), a step takes a `Batch` of `Row`s (the runner's),
and the answer is a stream of `TokenEvent`s (the HTTP side's).

`Capacity`, `EngineStats`, `Request` and `TokenEvent` cross the boundary between the HTTP side and
the engine, which may be in another process. They and everything in them are immutable values that
can be serialised.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lorry.adapter_needs import AdapterNeeds
from lorry.constraint import Constraint
from lorry.failure import Failure as Failure
from lorry.failure import FailureCode as FailureCode


class FinishReason(StrEnum):
    STOP = "stop"
    """An end-of-text token. Stop strings are found on the HTTP side, which then cancels."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Pooling(StrEnum):
    """What is computed from a request's prompt instead of new tokens."""

    LAST = "last"
    """The last token's hidden state."""
    MEAN = "mean"
    """The mean of all tokens' hidden states, without virtual ones."""
    CLASSIFY = "classify"
    """The classifier head's scores for the last token's hidden state."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base model's data for the HTTP side."""

    name: str
    """Its name in the API."""
    other_names: tuple[str, ...]
    """Other names that requests may use."""
    repository: str | None
    """Its id on the hub, if it has one."""
    source: str
    """The user's own spelling."""
    quantization: str
    eos_token_ids: frozenset[int]
    max_model_len: int
    """Tokens, prompt and answer together."""
    vocab_size: int
    """Tokens that it has embeddings and logits for."""
    about: Mapping[str, Any]
    """The JSON for `/info`."""
    adapter_needs: AdapterNeeds = field(default_factory=AdapterNeeds)
    """The memory of all adapters, and how much of it one needs."""

    @property
    def names(self) -> frozenset[str]:
        """Every name that means the base and no adapter."""
        own = {self.name, *self.other_names, self.repository}
        return frozenset(name for name in own if name is not None)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are drawn. The HTTP side has resolved and checked every field."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy: the arg max. None of the filters below matters then."""
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
    """The token at position p is drawn with the uniform number of (seed, p). It depends neither on
    the batch nor on preemptions."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer: the base's, unless end of text is ignored, and the request's
    own."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0
    """How many of the likeliest tokens to report beside the drawn one."""
    prompt_logprobs: int | None = None
    """How many of the likeliest tokens to report at each token of the prompt; None for no
    log-probabilities of the prompt."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of one request. They never change while the engine lives."""

    max_model_len: int
    """Virtual tokens, prompt and answer together."""
    kv_blocks: int
    """Blocks of the whole KV cache."""
    block_size: int
    """Tokens per block."""
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
    """0 means the base: the adapter has no effect."""
    start: int = 0
    """Absolute position, counting virtual tokens, of the first token that it changes. Above 0 only
    for an activated LoRA."""
    virtual_tokens: int = 0
    """Positions that it takes before the prompt."""
    is_prefix: bool = False
    """True if they are keys and values, which are written to the cache directly. Otherwise they
    are embeddings, which run through the model like tokens."""


@dataclass(frozen=True, slots=True)
class Caching:
    """How a request uses the prefix cache."""

    prompt: bool = True
    """False: it neither reads from the cache nor leaves anything in it."""
    salt: str = ""
    """Blocks are shared only with requests that have the same salt."""


SHARED = Caching()
"""The default."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the engine. The HTTP side holds its adapters' contents until the final event."""

    id: str
    prompt_ids: tuple[int, ...]
    """Never empty."""
    params: SamplingParams
    adapters: tuple[AdapterUse, ...]
    arrival: float
    """`time.monotonic()` seconds, by the client."""
    constraint: Constraint | None = None
    pooling: Pooling | None = None
    """If set, the only event of the request has a `vector`, and no token is drawn."""
    caller: str = ""
    """The caller, for fair sharing, and to share the prefix cache only with itself if the server
    wants that."""
    caching: Caching = SHARED
    weight: float = 1.0
    """The caller's share: above 0, and twice as much is twice the service while others wait."""
    speculative: bool | None = None
    """Whether tokens are drafted for it; None takes the server's setting. No token depends on
    it."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float
    """Under the model's own distribution, before temperature, penalties and filters."""
    top: tuple[TokenLogprob, ...] = ()
    """For a prompt token: the likeliest tokens at its position, likeliest first."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A new token of an answer."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()
    """The `top_logprobs` likeliest tokens at its position, likeliest first."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """The results of one step for one request. Exactly one event, the last, has a `finish`."""

    request_id: str
    drawn: tuple[Drawn, ...] = ()
    """In order. Empty if a request ends without a new token (cancelled, error, vector). A `finish`
    belongs to the last of them."""
    prompt: tuple[TokenLogprob | None, ...] = ()
    """In the first event of a request with `prompt_logprobs`: one entry per prompt token, None for
    the first, which nothing predicts."""
    finish: FinishReason | None = None
    failure: Failure | None = None
    """If `finish` is ERROR."""
    vector: tuple[float, ...] = ()
    """If `finish` is STOP and the request has a `pooling`."""
    started: float = 0.0
    """In an event with a token or a vector: when the first step that ran the request began,
    `time.monotonic()` seconds."""
    cached: int | None = None
    """In the first event with a token or a vector: prompt tokens found in the prefix cache; None if
    it was not searched."""
    drafts: int = 0
    """Tokens that the step had drafted for the request. All of `drawn` but the last are among
    them."""


@dataclass(frozen=True, slots=True)
class SlotUse:
    """One adapter of one row: its slot and its scale."""

    slot: int
    """1 or more; slot 0 is the base model and is never listed."""
    scale: float
    start: int = 0
    """Absolute position of the first token that it changes; earlier ones run as the base."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The request for the token after the last one of a row."""

    params: SamplingParams
    prompt: AbstractSequence[int]
    answer: AbstractSequence[int]
    """Tokens drawn so far; the length is the position in the answer."""
    allowed: AbstractSequence[int] | None
    """The mask of permitted tokens in 32-bit words: bit i of word w is token 32 * w + i. None if
    any token may come, and until `mask` was called."""
    mask: Callable[[int], AbstractSequence[int] | None] | None = None
    """For a request with a constraint: returns `allowed` behind so many of the row's drafts, all of
    which were drawn. The mask is computed while the model runs, so call it afterwards. Its
    exceptions are the request's own errors."""
    seen: array[int] | None = None
    """For a repetition penalty: the distinct tokens of the prompt and of the first `num_seen` of
    the answer, in 64 bits. It grows between two steps. None: they are not known yet."""
    num_seen: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """The part of one sequence that runs in this step."""

    request_id: str
    token_ids: AbstractSequence[int]
    """New tokens, at least one: those of the sequence, then drafts."""
    start: int
    """Absolute position of the first of them, which is the number of tokens in the KV cache. A
    sequence with a prefix begins right behind it. The runner writes the prefix to the cache
    whenever a row starts there."""
    blocks: AbstractSequence[int]
    """KV blocks of the whole sequence, in order; enough for start + len(token_ids)."""
    adapters: tuple[SlotUse, ...]
    sample: Sample | None
    """None while the prompt is only partly in the cache."""
    prompt_targets: AbstractSequence[int] | None = None
    """For prompt logprobs: the token that follows each of `token_ids` in the prompt, without
    virtual ones; one fewer if the chunk ends the prompt."""
    virtual: int = 0
    """How many of the first `token_ids` are virtual. Their ids mean nothing; their embeddings are
    rows `start` and following of an adapter's prompt."""
    pooling: Pooling | None = None
    """MEAN is set for every row of the prompt, the others only for the row that ends it."""
    prompt_top: int = 0
    """How many of the likeliest tokens to report for each of `prompt_targets`."""
    drafts: int = 0
    """How many of the last `token_ids` are drafts. Only of a row with a `sample`: a token is drawn
    behind the last token of the sequence, and another one as long as the draft was drawn."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """The first tokens of a block, which another block gets."""

    source: int
    target: int
    count: int
    """Tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step. Built by the scheduler, consumed by the runner."""

    rows: tuple[Row, ...]
    copies: tuple[BlockCopy, ...] = ()
    """Done before any row runs: all blocks are read, then all are written. No two have the same
    target."""

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class RowResult:
    """The runner's result for one row, in the batch's order."""

    drawn: tuple[Drawn, ...] = ()
    """In order; empty if the row had no `sample`."""
    prompt: tuple[TokenLogprob, ...] = ()
    """One per `prompt_targets`."""
    vector: tuple[float, ...] = ()
    """For a row with a `pooling`; for MEAN the sum over the row's tokens."""
    error: Exception | None = None
    """The exception of the row's `Sample.mask`."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot that the engine's thread replaces after every step. Any thread may read it."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_block_size: int = 0
    """Tokens per block."""
    kv_blocks_cached: int = 0
    """Blocks that a request with the same prefix would use, in use now or not."""
    slots_total: int = 0
    """Device slots beside the base's."""
    resident: tuple[str, ...] = ()
    """Digests in device slots."""
    running_adapters: tuple[str, ...] = ()
    """Names in use by running requests, sorted."""
    waiting_adapters: tuple[str, ...] = ()
    steps: int = 0
    loads: int = 0
    """Adapters copied to a slot since the start."""
    evictions: int = 0
    preemptions: int = 0
    failed_steps: int = 0
    slot_bytes: int = 0
    """Bytes reserved for the slots so far."""
    adapter_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the adapters in memory, by `lorry_adapters.lora.adapter_memory.PARTS`."""
