"""Batches of tokens with mixed adapters, as the scheduler can make them, and random slots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorry_adapters.lora.plan import Uses

NUM_SLOTS = 12
Rows = list[tuple[int, Uses]]
"""(number of tokens, adapters) of each row."""

POPULARITIES = ("distinct", "uniform", "zipf", "identical")
WORKS = ("decode", "prefill", "mixed")

RANKS = {
    "rank 8": [8] * NUM_SLOTS,
    "rank 16": [16] * NUM_SLOTS,
    "mixed ranks": [1, 16, 4, 8, 8, 3, 2, 16, 5, 8, 1, 16],
    "some without": [8, 0, 4, 8, 8, 0, 0, 16, 8, 8, 0, 16],
}


@dataclass
class Slots:
    a_SRI: Tensor
    b_SRO: Tensor
    ranks: tuple[int, ...]


def slots(
    ranks: Sequence[int],
    dtype: torch.dtype,
    seed: int,
    *,
    size: tuple[int, int],
    max_rank: int,
    beyond: float = 0.0,
) -> Slots:
    """Random adapters of these ranks in slots 1, 2, ...; `beyond` lies beyond each one's rank.
    `size`: (in, out)."""
    generator = torch.Generator().manual_seed(seed)
    a_SRI = torch.randn(NUM_SLOTS + 1, max_rank, size[0], generator=generator)
    b_SRO = torch.randn(NUM_SLOTS + 1, max_rank, size[1], generator=generator)
    every = (0, *ranks, *[0] * (NUM_SLOTS - len(ranks)))
    for slot, rank in enumerate(every):
        a_SRI[slot, rank:] = beyond
        b_SRO[slot, rank:] = beyond
    return Slots(a_SRI.to(dtype), b_SRO.to(dtype), every)


def adapters_of(popularity: str, batch: int) -> list[int]:
    """A slot for each row of the batch."""
    match popularity:
        case "distinct":
            return [1 + i % NUM_SLOTS for i in range(batch)]
        case "uniform":
            chance = random.Random(batch)
            return [chance.randint(1, NUM_SLOTS) for _ in range(batch)]
        case "zipf":
            chance = random.Random(batch)
            weights = [1 / rank for rank in range(1, NUM_SLOTS + 1)]
            return chance.choices(range(1, NUM_SLOTS + 1), weights, k=batch)
        case "identical":
            return [5] * batch
    raise AssertionError(popularity)


def batches(work: str, popularity: str, batch: int) -> list[Rows]:
    """The same batch plain, sorted by slot, with scales, with rows of the base, with sums."""
    chance = random.Random(batch)
    counts = {
        "decode": [1] * batch,
        "prefill": [chance.randint(2, 9) for _ in range(batch)],
        "mixed": sorted(chance.choice([1, 1, 1, 7]) for _ in range(batch)),
    }[work]
    chosen = adapters_of(popularity, batch)
    scale = [1.0, 0.5, -1.5, 16.0]
    plain: Rows = [(n, [(slot, 1.0)]) for n, slot in zip(counts, chosen, strict=True)]
    by_slot: Rows = sorted(plain, key=lambda row: (row[0] > 1, row[1][0][0]))
    scaled: Rows = [(n, [(s, scale[i % 4])]) for i, (n, ((s, _),)) in enumerate(by_slot)]
    with_base: Rows = [(n, [] if i % 3 == 1 else u) for i, (n, u) in enumerate(scaled)]
    summed: Rows = [
        (n, [*u, (1 + (i + 6) % NUM_SLOTS, 0.25)]) if u else (n, u)
        for i, (n, u) in enumerate(with_base)
    ]
    return [plain, by_slot, scaled, with_base, summed]
