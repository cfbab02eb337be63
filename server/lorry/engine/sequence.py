"""The scheduler's state of one request. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field, replace

from lorry.core import AdapterUse, Pooling, Request, Row, Sample, SlotUse, TokenLogprob
from lorry.engine.block_keys import VIRTUAL
from lorry.engine.drafter import Drafter
from lorry.engine.restriction import Following
from lorry.engine.seen import Seen


@dataclass(slots=True, eq=False)
class Sequence:
    """The scheduler's state of one request."""

    request: Request
    adapters: tuple[AdapterUse, ...]
    """The request's adapters with a scale other than 0."""
    arrival: int
    """The number of requests before it."""
    virtual: int = 0
    """Virtual tokens before the prompt, at positions 0 to `virtual` - 1."""
    prefix: int = 0
    """How many of them are written to the cache directly: all or none."""
    answer: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache, or will be when the first row runs."""
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Keys for the prefix cache: the one before its first block, then those of its first blocks."""
    keyed: bool = True
    """True if its blocks have the contents that its keys name, so that they can be shared."""
    entered: int = 0
    """How many of its first blocks have been entered."""
    copied_from: int | None = None
    """The block of another that it has copied the beginning of, last."""
    cached: int | None = None
    """Prompt tokens that were found in the prefix cache; None if it was not searched."""
    preempted: bool = False
    charged: bool = False
    """Whether its prompt was counted as served."""
    uses: tuple[SlotUse, ...] = ()
    """Set while it runs: its digests are pinned."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Collected chunk by chunk; None if not requested or already sent."""
    overtaken: int = 0
    started: float = 0.0
    """When the first step that ran it began; 0 before that."""
    following: Following | None = None
    """For a request with a constraint, once that is ready."""
    pooled: list[float] = field(default_factory=list)
    """For pooling MEAN: the sum so far."""
    seen: Seen | None = None
    """Made for the first token, if there is a repetition penalty."""
    drafts: bool = True
    """False once it is known that its tokens are not drafted."""
    drafter: Drafter | None = None
    """Made for the first draft."""

    @classmethod
    def of(cls, request: Request, arrival: int) -> Sequence:
        """Make a new one. Adapters at scale 0 have no effect and are left out."""
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
            keyed=request.caching.prompt,
        )

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(one.digest for one in self.adapters)

    @property
    def load(self) -> float:
        """What it adds to the load of its caller while it runs."""
        return 1 / self.request.weight

    @property
    def num_tokens(self) -> int:
        """The number of tokens, including virtual ones."""
        return self.virtual + len(self.request.prompt_ids) + len(self.answer)

    @property
    def missing(self) -> int:
        """The number of tokens that are not in the cache yet: 1 if it decodes."""
        return self.num_tokens - self.num_computed

    def next_tokens(self, count: int) -> AbstractSequence[int]:
        """Return the first `count` tokens that are not in the cache; 0 stands for a virtual one."""
        prompt = self.request.prompt_ids
        done = self.num_computed - self.virtual
        if done >= len(prompt):
            return self.answer[done - len(prompt) : done - len(prompt) + count]
        virtual = min(max(-done, 0), count)
        done = max(done, 0)
        end = done + count - virtual
        return [*[0] * virtual, *prompt[done:end], *self.answer[: max(end - len(prompt), 0)]]

    def tokens_at(self, begin: int, end: int) -> list[int]:
        """Return the tokens at the positions `begin` to `end` - 1; `VIRTUAL` for a virtual one."""
        prompt, first = self.request.prompt_ids, max(begin - self.virtual, 0)
        last = max(end - self.virtual, 0)
        of_answer = self.answer[max(first - len(prompt), 0) : max(last - len(prompt), 0)]
        tokens = [*prompt[first:last], *of_answer]
        return [*[VIRTUAL] * (end - begin - len(tokens)), *tokens]

    @property
    def reads(self) -> bool:
        """True if nothing but keys and values is wanted of its prompt, so that it can be cached."""
        return self.prompt_logprobs is None and self.request.pooling is not Pooling.MEAN

    def skip_to(self, position: int) -> None:
        """Continue at `position`: what is before it was found in the prefix cache."""
        if not self.preempted:
            before, after = (max(at - self.virtual, 0) for at in (self.num_computed, position))
            self.cached = (self.cached or 0) + after - before
        self.num_computed = position

    def uses_of(self, slots: tuple[int, ...]) -> tuple[SlotUse, ...]:
        """Return its uses, given the `slots` of its adapters."""
        used = zip(slots, self.adapters, strict=True)
        return tuple(SlotUse(slot, one.scale, one.start) for slot, one in used)

    def row(self, count: int, drafts: AbstractSequence[int] = ()) -> Row:
        """Return its next `count` tokens, and drafts behind the last one, as a row of a step."""
        request, start = self.request, self.num_computed
        prompt = request.prompt_ids
        sample: Sample | None = None
        ends = start + count == self.num_tokens
        pooling = request.pooling if ends or request.pooling is Pooling.MEAN else None
        if ends and request.pooling is None:
            mask = None if self.following is None else self.following.allowed
            if drafts and self.following is not None:
                self.following.look_ahead(drafts)
            sample = Sample(request.params, prompt, self.answer, None, mask)
            if request.params.repetition_penalty != 1.0:
                self.seen = self.seen or Seen(prompt)
                self.seen.follow(self.answer)
                sample = replace(sample, seen=self.seen.tokens, num_seen=len(self.answer))
        virtual = min(max(self.virtual - start, 0), count)
        targets: AbstractSequence[int] | None = None
        first = start + virtual - self.virtual
        if self.prompt_logprobs is not None and first < len(prompt):
            targets = prompt[first + 1 : first + count - virtual + 1]
        token_ids = self.next_tokens(count)
        return Row(
            request_id=request.id,
            token_ids=[*token_ids, *drafts] if drafts else token_ids,
            start=start,
            blocks=self.blocks,
            adapters=self.uses,
            sample=sample,
            prompt_targets=targets,
            prompt_top=0 if targets is None else request.params.prompt_logprobs or 0,
            virtual=virtual,
            pooling=pooling,
            drafts=len(drafts),
        )

    def forget_cache(self) -> None:
        """Start over. Whatever is not found in the prefix cache is computed again."""
        self.preempted = True
        self.num_computed = self.prefix
        self.entered = 0
        self.pooled = []
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = []

    def add_to_mean(self, vector: AbstractSequence[float]) -> None:
        """Add the sum over some more tokens of the prompt."""
        self.pooled = [
            a + b for a, b in zip(self.pooled or [0.0] * len(vector), vector, strict=True)
        ]

    def mean(self) -> tuple[float, ...]:
        return tuple(value / len(self.request.prompt_ids) for value in self.pooled)
