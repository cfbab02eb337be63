"""The Triton kernels against the oracle: every kind of batch that the scheduler can make.

Interpreted where there is no GPU; that is slow, so the grid is a coarser one than the CPU
kernels get.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry_adapters.lora.kernels import reference
from lorry_adapters.lora.kernels.table import table_of
from lorry_adapters.lora.plan import Plan, build_plan
from support import lora_batches
from support.device import DEVICE
from support.lora_batches import NUM_SLOTS, POPULARITIES, RANKS, WORKS, Rows, Slots, batches

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

from lorry_adapters.lora.kernels import triton_kernels

MAX_RANK, IN, OUT = 24, 136, 200
"""More than a block of each, and no multiple of one."""
LONG = triton_kernels.CUT + 200
"""An `in` that is cut."""

NAN = float("nan")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}
"""Relative to the largest number: sums in another order; two roundings (of A x, of the
result) to digits that end at 2^-8 and 2^-11."""

DTYPES = list(TOLERANCE)


def slots(ranks: list[int], dtype: torch.dtype, seed: int, num_in: int = IN) -> Slots:
    # What lies beyond a rank must not even be read.
    return lora_batches.slots(ranks, dtype, seed, size=(num_in, OUT), max_rank=MAX_RANK, beyond=NAN)


def tokens_of(rows: Rows, dtype: torch.dtype, seed: int, num_in: int = IN) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(count for count, _ in rows)
    x_TI = torch.randn(tokens, num_in, generator=generator).to(dtype)
    return x_TI, torch.randn(tokens, OUT, generator=generator).to(dtype)


def plan_of(rows: Rows, dtype: torch.dtype, digests: dict[int, str] | None = None) -> Plan:
    digest_of = None if digests is None else digests.__getitem__
    return build_plan(rows, dtype=dtype, device=DEVICE, digest_of=digest_of)


def added(y_TO: Tensor, x_TI: Tensor, at: Slots, plan: Plan) -> Tensor:
    mine = y_TO.to(DEVICE, copy=True)
    triton_kernels.add_delta(
        mine,
        x_TI.to(DEVICE),
        at.a_SRI.to(DEVICE),
        at.b_SRO.to(DEVICE),
        torch.tensor(at.ranks, dtype=torch.int32, device=DEVICE),
        table_of(plan),
        max_rank=MAX_RANK,
    )
    return mine.cpu()


def check(rows: Rows, at: Slots, dtype: torch.dtype, seed: int) -> None:
    x_TI, y_TO = tokens_of(rows, dtype, seed, at.a_SRI.shape[2])
    plan = plan_of(rows, dtype)
    mine = added(y_TO, x_TI, at, plan)
    theirs = y_TO.float()
    reference.add_delta(theirs, x_TI, at.a_SRI.nan_to_num(0), at.b_SRO.nan_to_num(0), plan.pairs)
    assert float((mine.float() - theirs).abs().max()) <= TOLERANCE[dtype] * float(
        theirs.abs().max()
    )
    token = 0
    for count, uses in rows:
        if not any(at.ranks[slot] for slot, _ in uses):
            # Not nearly: the base model's own numbers, untouched.
            assert torch.equal(mine[token : token + count], y_TO[token : token + count])
        token += count


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", ["rank 8", "mixed ranks", "some without"])
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_the_grid(popularity: str, ranks: str, dtype: torch.dtype) -> None:
    at = slots(RANKS[ranks], dtype, seed=1)
    for batch, work in ((1, "decode"), (4, "mixed"), (18, "decode")):
        *_, summed = batches(work, popularity, batch)
        check(summed, at, dtype, seed=batch)


@pytest.mark.parametrize("work", WORKS)
def test_every_way_to_ask(work: str) -> None:
    at = slots(RANKS["mixed ranks"], torch.float32, seed=2)
    for rows in batches(work, "zipf", 7):
        check(rows, at, torch.float32, seed=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_sum_is_cut(dtype: torch.dtype) -> None:
    assert triton_kernels.cut_of(LONG)[1] == 2
    rows: Rows = [(1, [(1, 1.0)]), (5, [(2, -0.5), (3, 2.0)]), (1, [])]
    check(rows, slots([16, 4, 24], dtype, 4, LONG), dtype, seed=4)


def test_cuts_cover_the_sum_and_are_few() -> None:
    for num_in in (1, 127, 128, 1024, 1025, 4096, 11008, 14336, 53248):
        cut, cuts = triton_kernels.cut_of(num_in)
        assert (cuts - 1) * cut < num_in <= cuts * cut
        assert cuts <= triton_kernels.MAX_CUTS
        assert cut % triton_kernels.BLOCK_I == 0


def test_without_a_pair_nothing_is_touched() -> None:
    check([(3, []), (1, [])], slots([8], torch.float32, 5), torch.float32, seed=5)


scales = st.sampled_from([1.0, 0.5, -2.0, 16.0, 1e-3])
# No request has one adapter twice. Two that cancel each other out leave their rounding alone.
uses = st.lists(
    st.tuples(st.integers(1, NUM_SLOTS), scales), max_size=3, unique_by=lambda use: use[0]
)


@settings(max_examples=30)
@given(
    rows=st.lists(st.tuples(st.integers(1, 6), uses), min_size=1, max_size=8),
    ranks=st.lists(st.integers(0, MAX_RANK), min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_batch(rows: Rows, ranks: list[int], dtype: torch.dtype, seed: int) -> None:
    check(rows, slots(ranks, dtype, seed), dtype, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_in", [IN, LONG])
def test_a_rows_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype, num_in: int) -> None:
    at = slots(RANKS["mixed ranks"], dtype, 6, num_in)
    digests = {slot: str(slot % 5) + str(slot) for slot in range(1, NUM_SLOTS + 1)}
    chance = random.Random(6)
    rows: Rows = [
        (chance.choice([1, 1, 4]), [(chance.randint(1, 6), 0.3), (chance.randint(7, 12), 1.7)][:n])
        for n in (1, 2, 0, 1, 2, 1, 1, 2, 1)
    ]
    x_TI, y_TO = tokens_of(rows, dtype, 7, num_in)
    together = added(y_TO, x_TI, at, plan_of(rows, dtype, digests))
    token = 0
    for row in rows:
        part = slice(token, token + row[0])
        alone = added(y_TO[part], x_TI[part], at, plan_of([row], dtype, digests))
        assert torch.equal(together[part], alone)
        token += row[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_has_the_same_bits_in_other_slots(dtype: torch.dtype) -> None:
    here = slots([8, 16, 3], dtype, 8)
    there = slots([3, 8, 16], dtype, 8)
    moved = {1: 2, 2: 3, 3: 1}
    for old, new in moved.items():
        there.a_SRI[new], there.b_SRO[new] = here.a_SRI[old], here.b_SRO[old]
    sums = [(1, 0.7), (2, 1.3), (3, -1.1)]
    rows: Rows = [(2, sums), (1, [(2, 1.0)])]
    x_TI, y_TO = tokens_of(rows, dtype, 9)
    one = added(y_TO, x_TI, here, plan_of(rows, dtype, {1: "c", 2: "a", 3: "b"}))
    rows = [(n, [(moved[slot], scale) for slot, scale in u]) for n, u in rows]
    other = added(y_TO, x_TI, there, plan_of(rows, dtype, {2: "c", 3: "a", 1: "b"}))
    assert torch.equal(one, other)


def test_a_scale_is_not_rounded_to_the_type_of_the_slots() -> None:
    at = slots([1], torch.bfloat16, 10)
    at.a_SRI[1, 0], at.b_SRO[1, 0] = 0, 1
    at.a_SRI[1, 0, 0] = 1
    x_TI = torch.zeros(1, IN, dtype=torch.bfloat16)
    x_TI[0, 0] = 256
    y_TO = torch.full((1, OUT), -256, dtype=torch.bfloat16)
    # 1.0009765625 is 1 in bfloat16; 256 of it are a quarter more than 256.
    made = added(y_TO, x_TI, at, plan_of([(1, [(1, 1.0009765625)])], torch.bfloat16))
    assert set(made.flatten().tolist()) == {0.25}


# The interpreter's numpy remarks on it; a GPU does not.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_adapter_that_overflows_does_so_alone(dtype: torch.dtype) -> None:
    at, tame = slots([4, 16, 8], dtype, 11), slots([4, 16, 8], dtype, 11)
    for part in (at.a_SRI[2, :16], at.b_SRO[2, :16]):
        part.copy_(part.sign() * torch.finfo(dtype).max)
    rows: Rows = [
        (1, [(1, 1.0)]),
        (3, [(2, 1.0)]),
        (1, []),
        (2, [(1, 1.0), (2, 1.0)]),
        (1, [(3, 1.0)]),
    ]
    x_TI, y_TO = tokens_of(rows, dtype, 12)
    wild, expected = (added(y_TO, x_TI, some, plan_of(rows, dtype)) for some in (at, tame))
    token = 0
    for count, row_uses in rows:
        part = slice(token, token + count)
        if any(slot == 2 for slot, _ in row_uses):
            assert not wild[part].isfinite().all()
        else:
            assert torch.equal(wild[part], expected[part])
        token += count
