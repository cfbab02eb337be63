"""One request on its way: what the scheduler knows of it. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

from lorry.core import Request, SlotUse, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way: what the scheduler knows of it."""

    request: Request
    digests: tuple[str, ...]
    scales: tuple[float, ...]
    starts: tuple[int, ...]
    """Absolute positions from which the adapters count."""
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
    pooled: list[float] = field(default_factory=list)
    """Pooling MEAN: the sum so far."""

    @classmethod
    def of(cls, request: Request, arrival: int) -> Sequence:
        """A new one; adapters at scale 0 are the base and leave no trace."""
        starts = request.starts or (0,) * len(request.lease.refs)
        used = [
            (ref, start)
            for ref, start in zip(request.lease.refs, starts, strict=True)
            if ref.scale != 0.0
        ]
        virtual = sum(ref.virtual_tokens for ref, _ in used)
        prefix = sum(ref.virtual_tokens for ref, _ in used if ref.is_prefix)
        assert prefix in (0, virtual)
        return cls(
            request,
            digests=tuple(ref.digest for ref, _ in used),
            scales=tuple(ref.scale for ref, _ in used),
            starts=tuple(virtual + start if ref.invocation else 0 for ref, start in used),
            arrival=arrival,
            virtual=virtual,
            prefix=prefix,
            num_computed=prefix,
            prompt_logprobs=None if request.params.prompt_logprobs is None else [],
        )

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
        used = zip(slots, self.scales, self.starts, strict=True)
        return tuple(SlotUse(slot, scale, start) for slot, scale, start in used)

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
