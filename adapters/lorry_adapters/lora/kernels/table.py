"""A step's pairs as a GPU kernel reads them: one table for every module, in device memory.

A *layer* of the table holds at most one pair a token: a token's first adapter in layer 0,
its second in layer 1. The kernel that writes runs once a layer, so no two of its programs
ever write to one token, nothing is added atomically, and a sum of adapters has one order.
Within a layer pairs lie slot by slot, cut into *tiles* of at most `TILE` pairs of one
slot: what one program of a kernel works on.

Ranks are not in here. A module has its own, in a tensor beside its slots, and a program
whose slot has rank 0 there ends at once. So one table serves all modules, it is built and
copied once a step, and a recorded graph stays right when an adapter of another rank comes.

Letters: P pairs, X tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorry_adapters.lora.plan import Plan

TILE = 16
"""Pairs of one tile: the least rows that a GPU's matrix units take. Always the same, so
that a token's sum is made in one order whoever is in the batch."""

Pair = tuple[int, int, float]
"""(slot, token, scale)"""


@dataclass(frozen=True, slots=True)
class Layers:
    """The table as lists."""

    tokens: list[int]
    """Of each pair."""
    scales: list[float]
    tiles: list[tuple[int, int, int]]
    """(slot, first pair, stop) of each tile."""
    spans: list[tuple[int, int]]
    """(first, stop) tile of each layer."""


def lay_out(pairs: Sequence[Pair]) -> Layers:
    """`pairs` in the order in which a token's are to be added, slot by slot otherwise."""
    depth: dict[int, int] = {}
    layers: list[list[Pair]] = []
    for pair in pairs:
        level = depth.get(pair[1], 0)
        depth[pair[1]] = level + 1
        if level == len(layers):
            layers.append([])
        layers[level].append(pair)
    tokens: list[int] = []
    scales: list[float] = []
    tiles: list[tuple[int, int, int]] = []
    spans: list[tuple[int, int]] = []
    for layer in layers:
        first_tile = len(tiles)
        # Stable: what is slot by slot already stays as it is.
        for slot, token, scale in sorted(layer, key=lambda pair: pair[0]):
            here = len(tokens)
            tokens.append(token)
            scales.append(scale)
            last = tiles[-1] if len(tiles) > first_tile else None
            if last is not None and last[0] == slot and here - last[1] < TILE:
                tiles[-1] = (slot, last[1], here + 1)
            else:
                tiles.append((slot, here, here + 1))
        spans.append((first_tile, len(tiles)))
    return Layers(tokens, scales, tiles, spans)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """In device memory."""

    tiles_X3: Tensor
    """int32: slot, first pair, stop; an empty tile has first = stop."""
    token_P: Tensor
    """int32."""
    scale_P: Tensor
    """float32."""
    spans: tuple[tuple[int, int], ...]
    """(first, stop) tile of each layer."""

    @property
    def num_tiles(self) -> int:
        return len(self.tiles_X3)

    @property
    def num_pairs(self) -> int:
        return len(self.token_P)


def table_of(plan: Plan) -> Table:
    """The plan's pairs on its device, in three copies."""
    layers = lay_out(plan.pairs)

    def tensor(values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=plan.device)

    return Table(
        tensor(layers.tiles, torch.int32).view(-1, 3),
        tensor(layers.tokens, torch.int32),
        tensor(layers.scales, torch.float32),
        tuple(layers.spans),
    )


@dataclass(slots=True, eq=False)
class TablePlan(Plan):
    """A plan whose pairs lie on a GPU as a table, for every module of the step."""

    table: Table | None = None
    used: frozenset[int] = frozenset()
    """The slots in use."""
    recorded: bool = False
    """The table is a recorded step's buffer: other pairs may lie in it when the step is
    repeated, so every kernel runs, and for any rank."""

    @staticmethod
    def on(device: torch.device, plan: Plan) -> TablePlan:
        """`plan`, for a step on `device`."""
        made = TablePlan(plan.runs, plan.num_tokens, plan.dtype, device)
        made.table = table_of(made)
        made.used = frozenset(plan.slots)
        return made

    def concerns(self, ranks: Sequence[int]) -> bool:
        """Whether a module that holds these ranks has anything to add."""
        return self.recorded or any(ranks[slot] for slot in self.used)
