"""A step's arguments for the compiled side: where each number points to."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model.compiled.call import Angles, Call, PairArrays
from lorry.model.compiled.packed_vectors import BoundVectorDeltas
from lorry.model.inputs import build_inputs
from lorry_adapters.lora.plan import build_plan

VOCAB = 50
BLOCK = 4


class Rope:
    """Angles that tell their position, and how often they were asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ids_1T: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        angles = ids_1T.float().unsqueeze(-1) + torch.tensor([0.25, 0.5])
        return angles, -angles


def row(ids: Sequence[int], start: int, blocks: Sequence[int], *uses: SlotUse) -> Row:
    sample = Sample(SamplingParams(1), (1,), (), None)
    return Row("r", ids, start, blocks, uses, sample)


def call(rope: Rope, *rows: Row) -> Call:
    inputs = build_inputs(
        Batch(rows),
        block_size=BLOCK,
        dtype=torch.float32,
        device=torch.device("cpu"),
        digest_of={1: "a", 2: "b"}.__getitem__,
    )
    return Call(inputs, Angles([rope], 1000), VOCAB, {}, {})


def read(kind: Any, address: int, count: int) -> list[Any]:
    return list((kind * count).from_address(address))


def test_every_token_finds_its_cell_and_every_row_its_context() -> None:
    made = call(
        Rope(),
        row([9], 5, [3, 7, 8], SlotUse(2, 0.5)),
        row([11, 12, 13], 2, [4, 1]),
        row([10], 3, [6], SlotUse(1, 1.0)),
    )
    step = made.struct
    assert step.num_tokens == 5 and step.num_wanted == 3
    # Single tokens come first, by slot.
    assert read(ctypes.c_int32, step.ids, 5) == [10, 9, 11, 12, 13]
    assert read(ctypes.c_int32, step.position, 5) == [3, 5, 2, 3, 4]
    assert read(ctypes.c_int32, step.row, 5) == [0, 1, 2, 2, 2]
    assert read(ctypes.c_int32, step.cell, 5) == [6 * 4 + 3, 7 * 4 + 1, 4 * 4 + 2, 4 * 4 + 3, 4]
    assert read(ctypes.c_int32, step.wanted, 3) == [0, 1, 4]
    starts = read(ctypes.c_int64, step.context, 3)
    cells = read(ctypes.c_int32, step.cells, 20)
    assert [cells[s : s + 4] for s in starts] == [
        [24, 25, 26, 27],
        [12, 13, 14, 15],
        [16, 17, 18, 19],
    ]
    assert cells[starts[1] + 4 : starts[1] + 6] == [28, 29]
    assert made.longest == 6
    assert step.body.num_pairs == step.body.num_segments == 2
    assert read(ctypes.c_int32, step.body.slot, 2) == [1, 2]
    assert read(ctypes.c_int32, step.body.token, 2) == [0, 1]
    assert read(ctypes.c_float, step.body.scale, 2) == [1.0, 0.5]


def test_angles_are_those_of_the_positions_and_are_computed_once() -> None:
    rope = Rope()
    angles = Angles([rope], 1000)
    for spans in ([(3, 4), (0, 1)], [(255, 256)], [(1, 2)], [(7, 10), (2, 4)]):
        cos, sin = angles.of(spans)
        positions = [at for first, end in spans for at in range(first, end)]
        assert list(cos) == [at + part for at in positions for part in (0.25, 0.5)]
        assert list(sin) == [-at - part for at in positions for part in (0.25, 0.5)]
    assert rope.calls == 1
    angles.of([(300, 301)])
    angles.of([(590, 600)])
    assert rope.calls == 2


def test_angles_of_every_rope_lie_one_after_the_other() -> None:
    first, second = Rope(), Rope()
    cos, sin = Angles([first, lambda ids: second(ids + 100)], 1000).of([(3, 4), (7, 9)])
    positions = [3, 7, 8, 103, 107, 108]
    assert list(cos) == [at + part for at in positions for part in (0.25, 0.5)]
    assert list(sin) == [-number for number in cos]


def test_angles_are_not_asked_for_beyond_the_longest_sequence() -> None:
    """Some kinds are others from there on."""
    asked: list[int] = []

    def rope(ids_1T: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(int(ids_1T.max()))
        return Rope()(ids_1T)

    angles = Angles([rope], 400)
    angles.of([(0, 300)])
    angles.of([(399, 400)])
    assert asked == [399]


def test_what_comes_back_is_where_the_step_wrote_it() -> None:
    made = call(Rope(), row([9], 0, [3]), row([8], 0, [2]))
    # Rows are whole blocks, of which nobody sees the rest.
    width = 64
    (ctypes.c_float * (2 * width)).from_address(made.struct.logits)[:] = range(2 * width)
    (ctypes.c_float * 2).from_address(made.struct.norm)[:] = [0.5, 1.5]
    (ctypes.c_int32 * 2).from_address(made.struct.best)[:] = [7, 8]
    logits = made.logits()
    assert logits.values_KV.equal(torch.arange(2.0 * width).view(2, width)[:, :VOCAB])
    assert logits.norm_K.tolist() == [0.5, 1.5]
    assert logits.best_K.tolist() == [7, 8] and logits.best_K.dtype is torch.int64


def test_tokens_with_vectors_are_listed_one_by_one() -> None:
    """Slot 1 has vectors at both of its scales, slot 2 has none."""
    plan = build_plan(
        [(1, [(2, 1.0)]), (2, [(1, 0.5), (2, 1.0)]), (1, [(1, 2.0)]), (1, [])],
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    bound = {
        (1, scale): BoundVectorDeltas(np.zeros(4, dtype=np.float32), np.zeros(2, dtype=np.uint8))
        for scale in (0.5, 2.0)
    }
    made = PairArrays(plan, bound)
    pairs = made.struct
    token = read(ctypes.c_int32, pairs.token, pairs.num_pairs)
    assert token == [1, 2, 3, 0, 1, 2]
    assert read(ctypes.c_int32, pairs.vectored, pairs.num_vectored) == [1, 2, 3]
    assert read(ctypes.c_int32, pairs.alone, 3) == [0, 0, 1]
    assert read(ctypes.c_int32, pairs.first, 4) == [0, 1, 2, 3]
    assert read(ctypes.c_int32, pairs.uses, 3) == [0, 1, 2]
    half, twice = bound[1, 0.5].address, bound[1, 2.0].address
    assert read(ctypes.c_uint64, pairs.vectors, 6) == [half, half, twice, 0, 0, 0]


def test_a_step_without_vectors_says_so() -> None:
    plan = build_plan([(1, [(2, 1.0)])], dtype=torch.float32, device=torch.device("cpu"))
    pairs = PairArrays(plan, {}).struct
    assert pairs.num_vectored == 0 and not pairs.vectors
