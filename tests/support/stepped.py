"""The real scheduler over the real executor on a tiny model, step by step and without threads.

What a request goes through in the server between its acceptance and its last token, with
limits small enough that prompts go in pieces and sequences start over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorry.core import FinishReason, Request, SamplingParams, TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.invocation import uses_of
from lorry.engine.limits import Limits
from lorry.engine.scheduler import Scheduler
from lorry.model.paths import leave_cores
from lorry_adapters.lora import weights
from lorry_adapters.lora.methods.method_table import is_prefix
from lorry_adapters.registry.record import AdapterRef
from support.executor_driver import BLOCK_SIZE, MAX_RANK, NUM_SLOTS, SIZES, load_tiny, unchecked

MAX_LEN = 256
NUM_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, and the folders of its adapters with their scales."""

    ids: Sequence[int]
    adapters: Sequence[tuple[Path, float]] = ()


@dataclass(slots=True)
class Answer:
    prompt: list[float] = field(default_factory=list)
    """Logprobs of all prompt tokens but the first."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


class Slots:
    """Adapters go to a slot when they are asked for, and stay."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._slots: dict[str, int] = {}

    def acquire(self, digests: Sequence[str]) -> tuple[int, ...]:
        return tuple(map(self._slot, digests))

    def _slot(self, digest: str) -> int:
        if digest not in self._slots:
            assert len(self._slots) < NUM_SLOTS
            self._slots[digest] = len(self._slots) + 1
            self._house.place(self._slots[digest], digest)
        return self._slots[digest]

    def release(self, digests: Sequence[str]) -> None:
        pass

    def prefetch(self, digests: Sequence[str]) -> None:
        pass


class House:
    def __init__(
        self,
        model: Path,
        *,
        quantization: str = "none",
        kernels: str = "torch",
        kv_cache: str = "auto",
    ) -> None:
        self.loaded = load_tiny(model, quantization=quantization, kernels=kernels)
        sizes = replace(SIZES, kv_blocks=NUM_BLOCKS)
        self.executor = unchecked(self.loaded, sizes, kernels=kernels, kv_cache=kv_cache)
        leave_cores(self.executor)
        assert self.executor.paths.kernels == kernels
        self.preemptions = 0
        self.batches: list[list[int]] = []
        """Tokens of each row of each step of the last call."""
        self.slots = Slots(self)

    def place(self, slot: int, digest: str) -> None:
        placement = self.executor.placement
        placement.place(
            slot, placement.prepare(weights.load(Path(digest), digest, self.loaded.layout))
        )

    def forget_slots(self) -> None:
        """The next adapters take the slots of the last ones."""
        self.slots = Slots(self)

    def ref(self, folder: Path, scale: float) -> AdapterRef:
        facts = weights.inspect(folder, self.loaded.layout, MAX_RANK)
        return AdapterRef(
            folder.name,
            1,
            str(folder),
            scale,
            virtual_tokens=facts.virtual_tokens,
            is_prefix=is_prefix(facts.peft_type),
            invocation=facts.invocation,
        )

    def run(
        self,
        asks: Sequence[Ask],
        count: int = 1,
        *,
        budget: int = 512,
        blocks: int = NUM_BLOCKS,
        prompt_logprobs: int | None = 0,
    ) -> list[Answer]:
        """All of `asks` at once, `count` greedy tokens each. `budget`: tokens in a step."""
        scheduler = Scheduler(
            Limits(len(asks), budget, MAX_LEN), BlockPool(blocks, BLOCK_SIZE), self.slots
        )
        params = SamplingParams(count, prompt_logprobs=prompt_logprobs)
        for index, ask in enumerate(asks):
            refs = tuple(self.ref(folder, scale) for folder, scale in ask.adapters)
            uses = uses_of(refs, ask.ids)
            scheduler.add(Request(str(index), tuple(ask.ids), params, uses, 0.0))
        answers = [Answer() for _ in asks]
        self.batches = []
        while scheduler.num_requests:
            batch = scheduler.schedule()
            assert batch is not None
            self.batches.append([len(row.token_ids) for row in batch.rows])
            for event in scheduler.commit(batch, self.executor.run(batch)):
                _take(answers[int(event.request_id)], event)
        self.preemptions = scheduler.preemptions
        return answers


def _take(answer: Answer, event: TokenEvent) -> None:
    assert event.failure is None, event.failure
    (drawn,) = event.drawn
    answer.prompt += [entry.logprob for entry in event.prompt if entry is not None]
    answer.tokens.append(drawn.token.token_id)
    answer.logprobs.append(drawn.token.logprob)
    answer.finish = event.finish
