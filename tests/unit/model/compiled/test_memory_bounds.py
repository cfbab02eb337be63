"""Nothing reaches the C code that would take it out of its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model.compiled.call import Angles, Call
from lorry.model.compiled.memory_bounds import MemoryBounds
from lorry.model.compiled.packed_matrices import room_of
from lorry.model.guard import Unsafe
from lorry.model.inputs import Inputs, build_inputs
from lorry_adapters.lora.matrix_deltas import (
    BoundChange,
    BoundKronecker,
    BoundShared,
    BoundTurn,
)
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.plan import Plan, Run, build_plan
from lorry_adapters.lora.vector_deltas import BoundDora, Delta, InwardGain, OutwardGain, Shift

CPU = torch.device("cpu")
ROOM = 400
BOUNDS = MemoryBounds(tokens=8, pairs=8, context=16, blocks=6, slots=3, rank=8, vocab=50, room=ROOM)
SIZES = {"m": (32, 48)}


def rope(ids_1T: Tensor) -> tuple[Tensor, Tensor]:
    angles = ids_1T.float().unsqueeze(-1).repeat(1, 1, 2)
    return angles, angles


def inputs(*uses: SlotUse, tokens: int = 3) -> Inputs:
    ids = list(range(tokens))
    row = Row("r", ids, 0, range(1, 6), uses, Sample(SamplingParams(1), (1,), (), None))
    return build_inputs(Batch((row,)), block_size=4, dtype=torch.float32, device=CPU, digest_of=str)


def check(made: Inputs) -> None:
    BOUNDS.check_step(Call(made, Angles([rope], 1000), 50, {}, {}), made)


def plan_of(*runs: Run, tokens: int = 3) -> Plan:
    return Plan(runs, tokens, torch.float32, CPU)


def test_a_step_inside_of_all_bounds() -> None:
    check(inputs())
    check(inputs(SlotUse(3, 0.5), tokens=8))


@pytest.mark.parametrize("slot", [4, 1000])
def test_a_slot_that_there_is_not(slot: int) -> None:
    with pytest.raises(Unsafe, match=f"slots {slot} to {slot} of 1 to 3"):
        check(inputs(SlotUse(slot, 1.0)))


@pytest.mark.parametrize("slot", [0, -1])
def test_the_bases_slot_and_those_before_it(slot: int) -> None:
    with pytest.raises(Unsafe, match="slots"):
        check(replace(inputs(), body=plan_of((slot, 0, 1, 1.0))))
    with pytest.raises(Unsafe, match="slots"):
        check(replace(inputs(), head=plan_of((slot, 0, 1, 1.0), tokens=1)))
    with pytest.raises(ValueError, match="is not an adapter"):
        build_plan([(1, [(slot, 1.0)])], dtype=torch.float32, device=CPU)


def test_a_plan_of_other_tokens() -> None:
    with pytest.raises(Unsafe, match="adapters of 4 tokens, not 3"):
        check(replace(inputs(), body=plan_of(tokens=4)))
    with pytest.raises(Unsafe, match="2 tokens of the head's adapters, room for 1"):
        check(replace(inputs(), head=plan_of(tokens=2)))


@pytest.mark.parametrize("run", [(1, -1, 2, 1.0), (1, 2, 2, 1.0), (1, 0, 0, 1.0)], ids=str)
def test_a_run_of_tokens_that_there_are_not(run: Run) -> None:
    with pytest.raises(Unsafe, match=f"slot 1 at {run[2]} tokens from {run[1]}, of 3"):
        check(replace(inputs(), body=plan_of(run)))


def test_more_pairs_than_there_is_room_for() -> None:
    with pytest.raises(Unsafe, match="9 adapters, room for 8"):
        check(inputs(*(SlotUse(slot, 1.0) for slot in (1, 2, 3)), tokens=3))
    check(inputs(*(SlotUse(slot, 1.0) for slot in (1, 2)), tokens=4))


def pair(rank: int = 4, inputs: int = 32, outputs: int = 48, inner: int | None = None) -> LoraPair:
    return LoraPair(torch.zeros(rank, inputs), torch.zeros(outputs, inner or rank), 1.0)


def dora(size: int) -> BoundDora:
    a_RI, b_OR = torch.zeros(4, 32), torch.zeros(48, 4)
    good, other = torch.ones(48), torch.ones(size)
    return BoundDora(a_RI, b_OR, 1.0, good, good, other, good, None, torch.float32, CPU)


def test_an_adapter_of_the_bases_sizes() -> None:
    deltas = [OutwardGain(torch.ones(48)), InwardGain(torch.ones(32), nn.Identity())]
    BOUNDS.check_adapter({"m": pair(8)}, {"m": [*deltas, Shift(torch.ones(48), True)]}, SIZES)
    BOUNDS.check_adapter({"m": pair()}, {"m": [dora(48)]}, SIZES)


@pytest.mark.parametrize(
    "wrong",
    [pair(9), pair(inputs=16), pair(inputs=64), pair(outputs=32), pair(outputs=64), pair(inner=8)],
    ids=["rank", "narrow", "wide", "few", "many", "two ranks"],
)
def test_a_pair_of_other_sizes(wrong: LoraPair) -> None:
    with pytest.raises(Unsafe, match="m: "):
        BOUNDS.check_adapter({"m": wrong}, {}, SIZES)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize(
    "make",
    [
        dora,
        lambda size: OutwardGain(torch.ones(size)),
        lambda size: InwardGain(torch.ones(size), nn.Identity()),
        lambda size: Shift(torch.ones(size), False),
    ],
    ids=["dora", "outward", "inward", "shift"],
)
def test_vectors_of_another_length(make: Callable[[int], Delta], size: int) -> None:
    with pytest.raises(Unsafe, match=f"m: {size} numbers"):
        BOUNDS.check_adapter({}, {"m": [make(size)]}, SIZES)


# ---- matrices


def turn(blocks: int = 4, size: int = 8, wide: int | None = None) -> BoundTurn:
    blocks_NSS = torch.zeros(blocks, size, wide or size)
    return BoundTurn(blocks_NSS, nn.Identity(), torch.float32, CPU)


def kronecker(a: int = 6, b: int = 8, c: int = 4, d: int = 8) -> BoundKronecker:
    return BoundKronecker(torch.zeros(a, c), torch.zeros(b, d), torch.float32, CPU)


def change(outputs: int = 48, inputs: int = 32) -> BoundChange:
    return BoundChange(torch.zeros(outputs, inputs))


def shared(
    rank: int = 8,
    wide: int = 40,
    tall: int = 60,
    *,
    other: int | None = None,
    middle: int | None = None,
    last: int = 48,
) -> BoundShared:
    return BoundShared(
        torch.zeros(rank, wide),
        torch.zeros(tall, other or rank),
        torch.zeros(middle or rank),
        torch.zeros(last),
    )


def test_matrices_of_the_bases_sizes() -> None:
    BOUNDS.check_adapter({}, {"m": [turn(), kronecker(), change(), shared()]}, SIZES)
    BOUNDS.check_adapter({}, {"m": [turn(1, 32), kronecker(16, 3, 2, 16), shared(wide=32)]}, SIZES)
    BOUNDS.check_adapter({}, {"m": [kronecker(1, 48, 1, 32), shared(tall=48)]}, SIZES)


WRONG: Mapping[str, Delta] = {
    "a turn of too few inputs": turn(blocks=3),
    "a turn of too many": turn(blocks=5),
    "a turn whose blocks are not square": turn(wide=1),
    "a turn whose blocks are wide": turn(blocks=4, size=8, wide=16),
    "a product of few outputs": kronecker(a=5),
    "a product of many outputs": kronecker(b=16),
    "a product of few inputs": kronecker(c=2),
    "a product of many inputs": kronecker(d=16),
    "a change of few outputs": change(outputs=32),
    "a change of many outputs": change(outputs=64),
    "a change of few inputs": change(inputs=16),
    "a change of many inputs": change(inputs=64),
    "a change that is turned": change(32, 48),
    "shared matrices of few inputs": shared(wide=31),
    "shared matrices of few outputs": shared(tall=47),
    "shared matrices of a high rank": shared(rank=9),
    "shared matrices of two ranks": shared(other=4),
    "a short vector between them": shared(middle=4),
    "a long vector between them": shared(middle=16),
    "a short vector after them": shared(last=32),
    "a long vector after them": shared(last=64),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_matrices_of_other_sizes(wrong: Delta) -> None:
    with pytest.raises(Unsafe, match="m: "):
        BOUNDS.check_adapter({}, {"m": [wrong]}, SIZES)
    with pytest.raises(Unsafe, match="m: "):
        BOUNDS.check_adapter({}, {"m": [change(), wrong]}, SIZES)


def test_a_product_that_needs_more_room_than_a_step_has() -> None:
    """As a [c, d] table, of which [a, b] and [c, b] lie in a row of a thread's own."""
    tight = kronecker(24, 2, 1, 32)
    assert room_of(tight) == ROOM == (24 + 1) * 16
    BOUNDS.check_adapter({}, {"m": [tight]}, SIZES)
    with pytest.raises(Unsafe, match="m: a product of 400 numbers, room for 399"):
        replace(BOUNDS, room=ROOM - 1).check_adapter({}, {"m": [tight]}, SIZES)


@given(
    a=st.integers(1, 12), b=st.integers(1, 12), c=st.integers(1, 12), d=st.integers(1, 12),
    blocks=st.integers(1, 12), size=st.integers(1, 12), wide=st.integers(1, 12),
)  # fmt: skip
def test_no_other_sizes_are_let_through(
    a: int, b: int, c: int, d: int, blocks: int, size: int, wide: int
) -> None:
    sizes = {"m": (12, 24)}

    def passes(delta: Delta) -> bool:
        try:
            BOUNDS.check_adapter({}, {"m": [delta]}, sizes)
        except Unsafe:
            return False
        return True

    fits = (a * b, c * d) == (24, 12) and room_of(kronecker(a, b, c, d)) <= ROOM
    assert passes(kronecker(a, b, c, d)) == fits
    assert passes(turn(blocks, size, wide)) == (size == wide and blocks * size == 12)
    assert passes(change(2 * a, b)) == ((2 * a, b) == (24, 12))
