"""The step's plan: the slots and scales of each token. Built once, used by every layer.

A *pair* is one adapter of one token. A row with two adapters has two pairs per token, and a row of
the base model has none. Pairs are ordered by slot, so that the tokens of one adapter are
neighbours and share one matrix product. A request's scale is a number of the pair; no weights
are copied for it. Pairs of neighbouring tokens with one adapter at one scale are a *run*: a
prompt of a thousand tokens is one.

Layers differ in the slots that they use (an adapter may target `q_proj` only) and in the ranks.
Layers with the same ranks share one `ModulePlan`, made at first use: two or three per step, not
one per layer.

Letters: T tokens, P pairs, N adapters in this step, M tokens of one adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

Uses = Sequence[tuple[int, float]]
"""(slot, scale) of every adapter of one row; slot >= 1, scale != 0."""

Run = tuple[int, int, int, float]
"""(slot, first token, number of tokens, scale)."""

Tokens = Tensor | slice
"""Some of a step's tokens: int64 `[M]`, or a slice."""

MAX_PADDING = 2.0
"""A padded batch of adapters is used instead of one product each up to this factor of work."""


class Shape(StrEnum):
    """The arrangement of the pairs, which decides the kernel."""

    UNIFORM = "uniform"
    """The tokens from `first_token` on are the pairs, in order, M for each of N slots."""
    PADDED = "padded"
    """Unequal counts, similar enough for one batch of N x M with padding."""
    SEGMENTS = "segments"
    """One product for each slot."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The pairs of one slot."""

    slot: int
    rank: int
    start: int
    """The first pair."""
    stop: int


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """The plan of one module in this step, shared by all modules with equal ranks."""

    shape: Shape
    segments: tuple[Segment, ...]
    """In the order of the plan's pairs; none is empty and none has rank 0."""
    rank: int
    """The largest rank."""
    first_slot: int
    contiguous: bool
    """The segments' slots are first_slot, first_slot + 1, ..., so they can be read without a
    copy."""
    slots_N: Tensor
    """int64, the segments' slots."""
    token_P: Tensor | None
    """int64, the token of each pair; None if it is `first_token` + pair."""
    first_token: int
    scale_P1: Tensor | None
    """In the compute dtype; None if every scale is 1."""
    place_P: Tensor | None
    """PADDED: int64, the position of each pair in the N x M grid."""
    width: int
    """UNIFORM and PADDED: M."""

    @property
    def num_pairs(self) -> int:
        return self.segments[-1].stop


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """The tokens that use at least one of several slots, and the tokens of each slot."""

    tokens_M: Tensor
    """int64, in order."""
    rest_N: Tensor | None
    """int64: all other tokens; None if there are none."""
    slots: tuple[tuple[int, Tensor | None, Tensor], ...]
    """(slot, the mask of its tokens among the M, `[M]`, or None for all, their scales `[M, 1]`)."""


@dataclass(slots=True, eq=False)
class Plan:
    """Created by `build_plan`; immutable except its caches."""

    runs: tuple[Run, ...]
    """By slot, and by token within each; none is empty."""
    num_tokens: int
    dtype: torch.dtype
    device: torch.device
    _memo: dict[tuple[int, ...], ModulePlan | None] = field(default_factory=dict, repr=False)
    _tokens: dict[int, tuple[Tokens, Tensor]] = field(default_factory=dict, repr=False)
    _covers: dict[tuple[int, ...], Cover] = field(default_factory=dict, repr=False)
    _pairs: tuple[tuple[int, int, float], ...] | None = field(default=None, repr=False)

    @property
    def pairs(self) -> tuple[tuple[int, int, float], ...]:
        """Return (slot, token, scale) of each pair, in the order of the runs. The time is
        proportional to the tokens."""
        if self._pairs is None:
            self._pairs = tuple(
                (slot, token, scale)
                for slot, first, count, scale in self.runs
                for token in range(first, first + count)
            )
        return self._pairs

    @property
    def num_pairs(self) -> int:
        return sum([count for _, _, count, _ in self.runs])

    @property
    def slots(self) -> tuple[int, ...]:
        """Every slot in use, once, in the order of the pairs."""
        return tuple(dict.fromkeys([slot for slot, _, _, _ in self.runs]))

    def tokens_of(self, slot: int) -> tuple[Tokens, Tensor]:
        """Return the tokens of a slot in use, and their scales: `[M, 1]`, or `[1, 1]` if all are
        the same."""
        try:
            return self._tokens[slot]
        except KeyError:
            mine = [run for run in self.runs if run[0] == slot]
            scales = [mine[0][3]] if len({run[3] for run in mine}) == 1 else _scales_of(mine)
            first, last = mine[0][1], mine[-1][1] + mine[-1][2]
            made = self._tokens[slot] = (
                # Indexing with a slice gives a view; an index copies, in ten times the time.
                slice(first, last)
                if _is_unbroken(mine)
                else torch.tensor(_tokens_of(mine), device=self.device),
                torch.tensor(scales, dtype=self.dtype, device=self.device).unsqueeze(1),
            )
            return made

    def cover(self, slots: tuple[int, ...]) -> Cover:
        """Return the cover of some slots in use."""
        try:
            return self._covers[slots]
        except KeyError:
            made = self._covers[slots] = self._cover(slots)
            return made

    def _cover(self, slots: tuple[int, ...]) -> Cover:
        tokens = sorted({token for slot, token, _ in self.pairs if slot in slots})
        place = {token: at for at, token in enumerate(tokens)}
        rest = [token for token in range(self.num_tokens) if token not in place]
        found = []
        for mine in slots:
            scales, is_mine = [0.0] * len(tokens), [False] * len(tokens)
            for slot, token, scale in self.pairs:
                if slot == mine:
                    scales[place[token]] += scale
                    is_mine[place[token]] = True
            whose = None if all(is_mine) else torch.tensor(is_mine, device=self.device)
            scale_M1 = torch.tensor(scales, dtype=self.dtype, device=self.device).unsqueeze(1)
            found.append((mine, whose, scale_M1))
        return Cover(
            torch.tensor(tokens, device=self.device),
            torch.tensor(rest, device=self.device) if rest else None,
            tuple(found),
        )

    def for_ranks(self, ranks: tuple[int, ...]) -> ModulePlan | None:
        """Return the plan of a module with rank `ranks[slot]` in each slot (0: nothing).

        Returns None if no token of this step uses the module's adapters.
        """
        try:
            return self._memo[ranks]
        except KeyError:
            made = self._memo[ranks] = self._build(ranks)
            return made

    def _build(self, ranks: tuple[int, ...]) -> ModulePlan | None:
        runs = [run for run in self.runs if ranks[run[0]]]
        if not runs:
            return None
        segments: list[Segment] = []
        num_pairs = 0
        for slot, _, count, _ in runs:
            start, num_pairs = num_pairs, num_pairs + count
            if segments and segments[-1].slot == slot:
                start = segments.pop().start
            segments.append(Segment(slot, ranks[slot], start, num_pairs))
        in_order = _is_unbroken(runs)
        slots = [segment.slot for segment in segments]
        width = max(segment.stop - segment.start for segment in segments)
        uniform = in_order and all(s.stop - s.start == width for s in segments)
        padded = len(segments) * width <= MAX_PADDING * num_pairs
        if len(segments) == 1 or not (uniform or padded):
            shape = Shape.SEGMENTS
        else:
            shape = Shape.UNIFORM if uniform else Shape.PADDED
        place = None
        if shape is Shape.PADDED:
            place = [
                n * width + k
                for n, segment in enumerate(segments)
                for k in range(segment.stop - segment.start)
            ]

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=self.device)

        return ModulePlan(
            shape=shape,
            segments=tuple(segments),
            rank=max(segment.rank for segment in segments),
            first_slot=slots[0],
            contiguous=slots == list(range(slots[0], slots[0] + len(slots))),
            slots_N=ints(slots),
            token_P=None if in_order else ints(_tokens_of(runs)),
            first_token=runs[0][1],
            scale_P1=None
            if all(run[3] == 1.0 for run in runs)
            else torch.tensor(_scales_of(runs), dtype=self.dtype, device=self.device).unsqueeze(1),
            place_P=None if place is None else ints(place),
            width=width,
        )


def _is_unbroken(runs: Sequence[Run]) -> bool:
    """Return whether each run begins at the end of the one before it."""
    end = runs[0][1]
    for _, first, count, _ in runs:
        if first != end:
            return False
        end += count
    return True


def _tokens_of(runs: Sequence[Run]) -> list[int]:
    return [token for _, first, count, _ in runs for token in range(first, first + count)]


def _scales_of(runs: Sequence[Run]) -> list[float]:
    return [scale for _, _, count, scale in runs for _ in range(count)]


def joined(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Join runs that continue the one before them, in order."""
    made: list[Run] = []
    for run in runs:
        if made:
            slot, first, count, scale = made[-1]
            if run[0] == slot and run[1] == first + count and run[3] == scale:
                made[-1] = (slot, first, count + run[2], scale)
                continue
        made.append(run)
    return tuple(made)


def build_plan(
    rows: Sequence[tuple[int, Uses]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    digest_of: Callable[[int], str] | None = None,
) -> Plan:
    """`rows`: (number of tokens, adapters) in the order of the packed tokens. `digest_of` returns
    the digest of the adapter in a slot; with it, the order of a sum does not depend on slots."""
    runs: list[Run] = []
    token = 0
    for num_tokens, uses in rows:
        for slot, scale in uses if num_tokens else ():
            if slot < 1 or scale == 0.0:
                # Not an assertion: kernels read any slot that they are given.
                raise ValueError(f"slot {slot} at scale {scale} is not an adapter")
            runs.append((slot, token, num_tokens, scale))
        token += num_tokens
    if digest_of is not None and any(len(uses) > 1 for _, uses in rows):
        # Deltas are added in this order. Slots depend on earlier requests, digests do not. So a
        # sum of adapters has the same last bits in any slots.
        runs.sort(key=lambda run: (digest_of(run[0]), *run[:2]))
    else:
        runs.sort()
    return Plan(joined(runs), token, dtype, device)
