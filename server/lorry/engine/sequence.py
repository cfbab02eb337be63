"""One request on its way: what the scheduler knows of it. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

from lorry.core import AdapterUse, Pooling, Request, Row, Sample, SlotUse, TokenLogprob
from lorry.engine.restriction import Following


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way: what the scheduler knows of it."""

    request: Request
    adapters: tuple[AdapterUse, ...]
    """Those of the request that are used at a scale other than 0."""
    arrival: int
    """How many came before it."""
    virtual: int = 0
    """Virtual tokens before the prompt, at positions 0 to `virtual` - 1."""
    prefix: int = 0
    """So many of them come to the cache ready made: all or none."""
    answer: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache, or will be when the first row runs."""
    blocks: list[int] = field(default_factory=list)
    uses: tuple[SlotUse, ...] = ()
    """Set while it runs: its digests are pinned."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Collected chunk by chunk; None when not asked for, or already sent."""
    overtaken: int = 0
    started: float = 0.0
    """When the step began in which it first ran; 0 before that."""
    following: Following | None = None
    """Of a request with a constraint, once it is there."""
    pooled: list[float] = field(default_factory=list)
    """Pooling MEAN: the sum so far."""

    @classmethod
    def of(cls, request: Request, arrival: int) -> Sequence:
        """A new one; adapters at scale 0 are the base and leave no trace."""
        used = tuple(one for one in request.adapters if one.scale != 0.0)
        virtual = sum(one.virtual_tokens for one in used)
        prefix = sum(one.virtual_tokens for one in used if one.is_prefix)
        assert prefix in (0, virtual)
        return cls(
            request,
            adapters=used,
            arrival=arrival,
            virtual=virtual,
            prefix=prefix,
            num_computed=prefix,
            prompt_logprobs=None if request.params.prompt_logprobs is None else [],
        )

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(one.digest for one in self.adapters)

    @property
    def num_tokens(self) -> int:
        """Virtual ones included."""
        return self.virtual + len(self.request.prompt_ids) + len(self.answer)

    @property
    def missing(self) -> int:
        """Tokens that are not in the cache yet: one where it decodes."""
        return self.num_tokens - self.num_computed

    def next_tokens(self, count: int) -> AbstractSequence[int]:
        """The first `count` tokens that are not in the cache; 0 stands for a virtual one."""
        prompt = self.request.prompt_ids
        done = self.num_computed - self.virtual
        if done >= len(prompt):
            return self.answer[done - len(prompt) : done - len(prompt) + count]
        virtual = min(max(-done, 0), count)
        done = max(done, 0)
        real = [*prompt, *self.answer][done : done + count - virtual]
        return [*[0] * virtual, *real]

    def uses_of(self, slots: tuple[int, ...]) -> tuple[SlotUse, ...]:
        """`slots`: where its adapters are."""
        used = zip(slots, self.adapters, strict=True)
        return tuple(SlotUse(slot, one.scale, one.start) for slot, one in used)

    def row(self, count: int) -> Row:
        """Its next `count` tokens as a part of a step."""
        request, start = self.request, self.num_computed
        prompt = request.prompt_ids
        sample: Sample | None = None
        ends = start + count == self.num_tokens
        pooling = request.pooling if ends or request.pooling is Pooling.MEAN else None
        if ends and request.pooling is None:
            mask = None if self.following is None else self.following.allowed
            sample = Sample(request.params, prompt, self.answer, None, mask)
        virtual = min(max(self.virtual - start, 0), count)
        targets: AbstractSequence[int] | None = None
        first = start + virtual - self.virtual
        if self.prompt_logprobs is not None and first < len(prompt):
            targets = prompt[first + 1 : first + count - virtual + 1]
        return Row(
            request_id=request.id,
            token_ids=self.next_tokens(count),
            start=start,
            blocks=self.blocks,
            adapters=self.uses,
            sample=sample,
            prompt_targets=targets,
            prompt_top=0 if targets is None else request.params.prompt_logprobs or 0,
            virtual=virtual,
            pooling=pooling,
        )

    def forget_cache(self) -> None:
        """Everything is computed anew."""
        self.num_computed = self.prefix
        self.pooled = []
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = []

    def add_to_mean(self, vector: AbstractSequence[float]) -> None:
        """The sum over some more tokens of the prompt."""
        self.pooled = [
            a + b for a, b in zip(self.pooled or [0.0] * len(vector), vector, strict=True)
        ]

    def mean(self) -> tuple[float, ...]:
        return tuple(value / len(self.request.prompt_ids) for value in self.pooled)
