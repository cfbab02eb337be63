"""The step's plan: which tokens want which slots at which scale. Built once, used by every layer.

A *pair* is one adapter of one token. A row with two adapters has two pairs per
token, a row of the base model has none. Pairs lie slot by slot, so that the
tokens of one adapter are neighbours and one matrix product serves them all. A
request's scale is a number of the pair; no weights are copied for it.

Layers differ in which slots carry something for them (an adapter may target
`q_proj` only) and at which rank. Layers with the same ranks share one
`ModulePlan`, made at first use: two or three a step, not one a layer.

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

Tokens = Tensor | slice
"""Some of a step's: int64 `[M]`, or a run of neighbours."""

MAX_PADDING = 2.0
"""Padded batch of adapters or one product each: the batch may waste this factor of work."""


class Shape(StrEnum):
    """How the pairs lie, and so which kernel suits them."""

    UNIFORM = "uniform"
    """The tokens from `first_token` on are the pairs, in order, M for each of N slots."""
    PADDED = "padded"
    """Unequal counts, near enough for one batch of N x M with holes."""
    SEGMENTS = "segments"
    """One product for each slot."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The pairs of one slot."""

    slot: int
    rank: int
    start: int
    """First pair."""
    stop: int


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """What one module does in this step; the same object for all modules of equal ranks."""

    shape: Shape
    segments: tuple[Segment, ...]
    """In the order of the plan's pairs; none is empty and none has rank 0."""
    rank: int
    """Largest of them."""
    first_slot: int
    contiguous: bool
    """The segments' slots are first_slot, first_slot + 1, ...: read them without a copy."""
    slots_N: Tensor
    """int64, the segments' slots."""
    token_P: Tensor | None
    """int64, the token of each pair; None where it is `first_token` + pair."""
    first_token: int
    scale_P1: Tensor | None
    """In the compute dtype; None where every scale is 1."""
    place_P: Tensor | None
    """PADDED: int64, where each pair lies in the N x M grid."""
    width: int
    """UNIFORM and PADDED: M."""

    @property
    def num_pairs(self) -> int:
        return self.segments[-1].stop


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """The tokens that any of some slots has a say in, and which of them are whose."""

    tokens_M: Tensor
    """int64, in order."""
    rest_N: Tensor | None
    """int64: all others; None where there are none."""
    slots: tuple[tuple[int, Tensor | None, Tensor], ...]
    """(slot, which of the M are its own `[M]` or None for all, their scales `[M, 1]`)."""


@dataclass(slots=True, eq=False)
class Plan:
    """Made by `build_plan`; immutable but for its memos."""

    pairs: tuple[tuple[int, int, float], ...]
    """(slot, token, scale): slot by slot, and by token within each."""
    num_tokens: int
    dtype: torch.dtype
    device: torch.device
    _memo: dict[tuple[int, ...], ModulePlan | None] = field(default_factory=dict, repr=False)
    _tokens: dict[int, tuple[Tokens, Tensor]] = field(default_factory=dict, repr=False)
    _covers: dict[tuple[int, ...], Cover] = field(default_factory=dict, repr=False)

    @property
    def slots(self) -> tuple[int, ...]:
        """Every slot in use, once, in the order of the pairs."""
        return tuple(dict.fromkeys(slot for slot, _, _ in self.pairs))

    def tokens_of(self, slot: int) -> tuple[Tokens, Tensor]:
        """The tokens of a slot in use, and their scales: `[M, 1]`, or `[1, 1]` where all are
        the same."""
        try:
            return self._tokens[slot]
        except KeyError:
            mine = [(token, scale) for other, token, scale in self.pairs if other == slot]
            scales = [scale for _, scale in mine]
            if len(set(scales)) == 1:
                scales = scales[:1]
            tokens = [token for token, _ in mine]
            first, last = tokens[0], tokens[-1]
            one_run = tokens == list(range(first, last + 1))
            made = self._tokens[slot] = (
                # Of a slice a tensor is a view; an index copies, in ten times the time.
                slice(first, last + 1) if one_run else torch.tensor(tokens, device=self.device),
                torch.tensor(scales, dtype=self.dtype, device=self.device).unsqueeze(1),
            )
            return made

    def cover(self, slots: tuple[int, ...]) -> Cover:
        """Of some slots in use."""
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
        """The plan of a module that holds rank `ranks[slot]` for each slot (0: nothing).

        None where no token of this step wants anything of the module.
        """
        try:
            return self._memo[ranks]
        except KeyError:
            made = self._memo[ranks] = self._build(ranks)
            return made

    def _build(self, ranks: tuple[int, ...]) -> ModulePlan | None:
        pairs = [pair for pair in self.pairs if ranks[pair[0]]]
        if not pairs:
            return None
        segments: list[Segment] = []
        for index, (slot, _, _) in enumerate(pairs):
            if segments and segments[-1].slot == slot:
                last = segments[-1]
                segments[-1] = Segment(slot, last.rank, last.start, index + 1)
            else:
                segments.append(Segment(slot, ranks[slot], index, index + 1))
        tokens = [token for _, token, _ in pairs]
        scales = [scale for _, _, scale in pairs]
        in_order = tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        slots = [segment.slot for segment in segments]
        width = max(segment.stop - segment.start for segment in segments)
        uniform = in_order and all(s.stop - s.start == width for s in segments)
        padded = len(segments) * width <= MAX_PADDING * len(pairs)
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
            token_P=None if in_order else ints(tokens),
            first_token=tokens[0],
            scale_P1=None
            if all(scale == 1.0 for scale in scales)
            else torch.tensor(scales, dtype=self.dtype, device=self.device).unsqueeze(1),
            place_P=None if place is None else ints(place),
            width=width,
        )


def build_plan(
    rows: Sequence[tuple[int, Uses]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    digest_of: Callable[[int], str] | None = None,
) -> Plan:
    """`rows`: (number of tokens, adapters) in the order of the packed tokens. `digest_of`:
    of the adapter in a slot; with it a sum is made in an order that no slot decides."""
    pairs: list[tuple[int, int, float]] = []
    token = 0
    for num_tokens, uses in rows:
        for slot, scale in uses:
            if slot < 1 or scale == 0.0:
                # Not an assertion: kernels read the slot that they are told.
                raise ValueError(f"slot {slot} at scale {scale} is no adapter")
            pairs.extend((slot, token + offset, scale) for offset in range(num_tokens))
        token += num_tokens
    if digest_of is not None and any(len(uses) > 1 for _, uses in rows):
        # Deltas are added in this order. Slots depend on who came before, digests do not:
        # a sum of adapters has the same last bits wherever they lie.
        pairs.sort(key=lambda pair: (digest_of(pair[0]), *pair[:2]))
    else:
        pairs.sort(key=lambda pair: pair[:2])
    return Plan(tuple(pairs), token, dtype, device)
