"""The kernels against the oracle: every kind of batch that the scheduler can make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry_adapters.lora.kernels import grouped, reference
from lorry_adapters.lora.plan import Shape, build_plan
from support import lora_batches
from support.lora_batches import (
    NUM_SLOTS,
    POPULARITIES,
    RANKS,
    WORKS,
    Rows,
    Slots,
    adapters_of,
    batches,
)

MAX_RANK, IN, OUT = 16, 24, 40
CPU = torch.device("cpu")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Of a delta, relative to the largest: sums in another order, and for bfloat16, whose digits
end at 2^-8, two roundings that the oracle does not make (of A x and of a scale)."""


def slots(ranks: list[int], dtype: torch.dtype, seed: int) -> Slots:
    return lora_batches.slots(ranks, dtype, seed, size=(IN, OUT), max_rank=MAX_RANK)


def both(rows: Rows, at: Slots, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What was there, what the kernel makes of it, and what the oracle does."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(count for count, _ in rows)
    x_TI = torch.randn(tokens, IN, generator=generator).to(dtype)
    y_TO = torch.randn(tokens, OUT, generator=generator).to(dtype)
    made = build_plan(rows, dtype=dtype, device=CPU)
    mine, theirs = y_TO.clone(), y_TO.float()
    plan = made.for_ranks(at.ranks)
    if plan is not None:
        grouped.add_delta(mine, x_TI, at.a_SRI, at.b_SRO, plan)
    reference.add_delta(theirs, x_TI, at.a_SRI, at.b_SRO, made.pairs)
    return y_TO, mine, theirs


def check(rows: Rows, at: Slots, dtype: torch.dtype, seed: int) -> None:
    y_TO, mine, theirs = both(rows, at, dtype, seed)
    size = max(1.0, float((theirs - y_TO.float()).abs().max()), float(theirs.abs().max()))
    assert float((mine.float() - theirs).abs().max()) <= TOLERANCE[dtype] * size
    token = 0
    for count, uses in rows:
        if not any(at.ranks[slot] for slot, _ in uses):
            # Not nearly: the base model's own numbers, untouched.
            assert torch.equal(mine[token : token + count], y_TO[token : token + count])
        token += count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("work", WORKS)
def test_the_grid(work: str, popularity: str, ranks: str, dtype: torch.dtype) -> None:
    at = slots(RANKS[ranks], dtype, seed=1)
    for batch in (1, 2, 3, 8, 33):
        for rows in batches(work, popularity, batch):
            check(rows, at, dtype, seed=batch)


def test_the_grid_meets_every_shape() -> None:
    seen = set()
    for popularity in POPULARITIES:
        rows: Rows = [(1, [(slot, 1.0)]) for slot in sorted(adapters_of(popularity, 8))]
        plan = build_plan(rows, dtype=torch.float32, device=CPU).for_ranks((0, *[8] * NUM_SLOTS))
        assert plan is not None
        seen.add(plan.shape)
    assert seen == set(Shape)


def test_eight_adapters_of_one_token_and_one_of_them_twice() -> None:
    at = slots([8] * NUM_SLOTS, torch.float32, seed=2)
    rows: Rows = [
        (3, [(slot, 0.5 * slot) for slot in range(1, 9)]),
        (1, []),
        (2, [(4, 1.0), (4, -0.5), (7, 2.0)]),
        (1, [(4, 1.0)]),
    ]
    check(rows, at, torch.float32, seed=3)


scales = st.sampled_from([1.0, 0.5, -2.0, 16.0, 1e-3])
uses = st.lists(st.tuples(st.integers(1, NUM_SLOTS), scales), max_size=3)


@settings(max_examples=150)
@given(
    rows=st.lists(st.tuples(st.integers(1, 6), uses), min_size=1, max_size=12),
    ranks=st.lists(st.integers(0, MAX_RANK), min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_any_batch(rows: Rows, ranks: list[int], dtype: torch.dtype, seed: int) -> None:
    check(rows, slots(ranks, dtype, seed), dtype, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(1, [(slot, 1.0)]) for slot in (1, 2, 3, 4)], id="uniform"),
        pytest.param([(1, [(slot, 1.0)]) for slot in (1, 2, 2, 3, 4)], id="padded"),
        pytest.param([(1, [(1, 1.0)]), (9, [(2, 1.0)]), (1, [(3, 1.0)])], id="segments"),
        pytest.param([(1, []), (2, [(1, 1.0), (2, 1.0)]), (1, [(3, 1.0)]), (1, [])], id="summed"),
    ],
)
def test_an_adapter_that_overflows_does_so_alone(rows: Rows, dtype: torch.dtype) -> None:
    """Finite weights, so let in; A x or B A x is not. Nobody else may notice."""
    at = slots([4, 16, 8, 8], dtype, seed=4)
    tame = slots([4, 16, 8, 8], dtype, seed=4)
    largest = torch.finfo(dtype).max
    for part in (at.a_SRI[2], at.b_SRO[2]):
        part.copy_((part.sign() * largest).nan_to_num(0))
    _, wild, _ = both(rows, at, dtype, seed=5)
    _, expected, _ = both(rows, tame, dtype, seed=5)
    token = 0
    for count, row_uses in rows:
        part = slice(token, token + count)
        if any(slot == 2 for slot, _ in row_uses):
            assert not wild[part].isfinite().all()
        else:
            assert torch.equal(wild[part], expected[part])
        token += count
