"""Drives the executor as the engine would, with nothing in between: rows in, numbers out.

Blocks are handed out in a shuffled order, so that a cache which only works for
neighbouring blocks fails here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorry.core import Batch, Row, RowResult, Sample, SamplingParams, SlotUse, TokenLogprob
from lorry.model.base_loader import LoadedModel, load
from lorry.model.executor import Executor
from lorry.model.paths import (
    FirstPass,
    Kernels,
    Sizes,
    build,
    checked,
    choose,
    first_pass,
    leave_cores,
    replacer,
)
from lorry.settings import Settings
from lorry_adapters.lora import weights
from support.peft_oracle import Adapters

BLOCK_SIZE = 8
NUM_BLOCKS = 512
NUM_SLOTS = 8
MAX_RANK = 32
MAX_TOKENS = 1024
"""In one step."""


@dataclass(frozen=True)
class Ask:
    """One sequence, and the adapters it wants."""

    adapters: Adapters
    token_ids: Sequence[int]

    @property
    def both(self) -> tuple[Adapters, Sequence[int]]:
        return self.adapters, self.token_ids


def load_tiny(folder: Path, *, quantization: str = "none", kernels: str = "torch") -> LoadedModel:
    settings = Settings(
        model=str(folder),
        home=folder,
        device="cpu",
        dtype="float32",
        quantize=quantization,
    )
    return load(settings, lambda _: None, replacer=replacer(kernels))


SIZES = Sizes(
    kv_blocks=NUM_BLOCKS,
    block_size=BLOCK_SIZE,
    max_slots=NUM_SLOTS,
    max_rank=MAX_RANK,
    max_tokens=MAX_TOKENS,
)


def unchecked(
    loaded: LoadedModel, sizes: Sizes, *, kernels: str = "torch", kv_cache: str = "auto"
) -> Executor:
    """Paths as `--kernels` chooses them, without the self-check's half a second."""
    found = first_pass(loaded)
    chosen = choose(kernels, loaded, found, block_size=sizes.block_size, kv_cache=kv_cache)
    return build(loaded, found, chosen, sizes)


class ExecutorDriver:
    """An executor on a tiny model, and the slots and blocks that a scheduler would keep."""

    def __init__(
        self,
        folder: Path,
        *,
        quantization: str = "none",
        kernels: str = "torch",
        threads: int = 1,
        is_checked: bool = False,
        kv_cache: str = "auto",
    ) -> None:
        """`kernels`: torch or compiled, as `--kernels` has them; `threads` of the compiled ones.
        `kv_cache`: as `--kv-cache-dtype`.
        `is_checked`: by the self-check, as the server's are."""
        self.loaded = load_tiny(folder, quantization=quantization, kernels=kernels)
        self._slots: dict[Path, int] = {}
        found = first_pass(self.loaded)
        chosen = choose(kernels, self.loaded, found, block_size=BLOCK_SIZE, kv_cache=kv_cache)
        self.executor = self.start(found, replace(chosen, threads=threads), is_checked)

    def start(self, found: FirstPass, kernels: Kernels, is_checked: bool) -> Executor:
        if is_checked:
            return checked(self.loaded, found, kernels, SIZES)
        executor = build(self.loaded, found, kernels, SIZES)
        leave_cores(executor)
        return executor

    def close(self) -> None:
        self.executor.paths.close()

    def slot_of(self, folder: Path) -> int:
        if folder not in self._slots:
            assert len(self._slots) < NUM_SLOTS
            self.place(len(self._slots) + 1, folder)
        return self._slots[folder]

    def place(self, slot: int, folder: Path) -> None:
        """Puts the adapter in that slot, whatever was there."""
        loaded = weights.load(folder, f"sha256:{folder}", self.executor.paths.layout)
        placement = self.executor.placement
        placement.place(slot, placement.prepare(loaded))
        self._slots = {path: at for path, at in self._slots.items() if at != slot}
        self._slots[folder] = slot

    @property
    def placed(self) -> list[Path]:
        """Adapters that lie in a slot now."""
        return list(self._slots)

    def forget_slots(self) -> None:
        """The next adapters start at slot 1 again, over the old ones."""
        self._slots.clear()

    def score(self, asks: Sequence[Ask], *, chunk: int | None = None) -> list[list[float]]:
        """Logprobs of every token but the first of each sequence, all in one batch.

        `chunk`: the prompts go in that many tokens at a time, a step each.
        """
        rows = [_Sequence(ask, self._uses(ask)) for ask in asks]
        _hand_out_blocks(rows, self.executor.paths.cache.num_blocks)
        while True:
            now = [row.row(row.prompt_left(chunk), None) for row in rows if row.prompt_left(chunk)]
            if not now:
                return [row.logprobs for row in rows]
            results = self.executor.run(Batch(tuple(now)))
            for result, row in zip(results, _of(rows, now), strict=True):
                row.logprobs.extend(entry.logprob for entry in result.prompt)

    def greedy(
        self, asks: Sequence[Ask], count: int, *, chunk: int | None = None, top: int = 0
    ) -> list[list[RowResult]]:
        """Prefills in chunks, then draws `count` tokens greedily for every sequence."""
        params = SamplingParams(max_new_tokens=count, top_logprobs=top)
        rows = [_Sequence(ask, self._uses(ask), room=count) for ask in asks]
        _hand_out_blocks(rows, self.executor.paths.cache.num_blocks)
        while any(len(row.drawn) < count for row in rows):
            now = [row.next(chunk, params) for row in rows if len(row.drawn) < count]
            results = self.executor.run(Batch(tuple(now)))
            for result, row in zip(results, _of(rows, now), strict=True):
                if result.drawn:
                    row.answer += token_ids([result])
                    row.drawn.append(result)
        return [row.drawn for row in rows]

    def _uses(self, ask: Ask) -> tuple[SlotUse, ...]:
        # As the scheduler does: an adapter at scale 0 is no adapter.
        return tuple(
            SlotUse(self.slot_of(folder), scale) for folder, scale in ask.adapters if scale != 0.0
        )


class _Sequence:
    def __init__(self, ask: Ask, uses: tuple[SlotUse, ...], room: int = 0) -> None:
        self.prompt = list(ask.token_ids)
        self.uses = uses
        self.num_tokens = len(self.prompt) + room
        self.blocks: list[int] = []
        self.computed = 0
        self.answer: list[int] = []
        self.drawn: list[RowResult] = []
        self.logprobs: list[float] = []

    def prompt_left(self, chunk: int | None) -> int:
        left = max(0, len(self.prompt) - self.computed)
        return left if chunk is None else min(left, chunk)

    def next(self, chunk: int | None, params: SamplingParams) -> Row:
        count = self.prompt_left(chunk)
        if count and self.computed + count < len(self.prompt):
            return self.row(count, None, score=False)
        return self.row(
            count or 1, Sample(params, self.prompt, list(self.answer), None), score=False
        )

    def row(self, count: int, sample: Sample | None, *, score: bool = True) -> Row:
        tokens = self.prompt + self.answer
        start, stop = self.computed, self.computed + count
        self.computed = stop
        return Row(
            request_id=str(id(self)),
            token_ids=tokens[start:stop],
            start=start,
            blocks=self.blocks,
            adapters=self.uses,
            sample=sample,
            prompt_targets=self.prompt[start + 1 : stop + 1] if score else None,
        )


def _of(rows: Sequence[_Sequence], now: Sequence[Row]) -> list[_Sequence]:
    by_id = {str(id(row)): row for row in rows}
    return [by_id[row.request_id] for row in now]


def _hand_out_blocks(rows: Sequence[_Sequence], blocks: int) -> None:
    free = list(range(blocks))
    random.Random(len(rows)).shuffle(free)
    for row in rows:
        row.blocks = [free.pop() for _ in range(-(-row.num_tokens // BLOCK_SIZE))]


def token_ids(results: Sequence[RowResult]) -> list[int]:
    return [one.token.token_id for result in results for one in result.drawn]


def tops(results: Sequence[RowResult]) -> list[tuple[TokenLogprob, ...]]:
    """The likeliest in the place of each token."""
    return [one.top for result in results for one in result.drawn]


def drawn(results: Sequence[RowResult]) -> list[TokenLogprob]:
    return [one.token for result in results for one in result.drawn]
