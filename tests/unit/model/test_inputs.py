"""A batch as tensors, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lorry.core import Batch, Row, Sample, SamplingParams, SlotUse
from lorry.model.inputs import Inputs, build_inputs
from lorry.model.sight import Sight

CPU = torch.device("cpu")
SAMPLE = Sample(SamplingParams(1), (1,), (), None)


def row(
    tokens: Sequence[int],
    start: int,
    blocks: Sequence[int],
    *uses: tuple[int, float],
    sample: bool = False,
    targets: Sequence[int] | None = None,
) -> Row:
    return Row(
        f"{tokens}",
        tokens,
        start,
        blocks,
        tuple(SlotUse(*use) for use in uses),
        SAMPLE if sample else None,
        targets,
    )


def built(*rows: Row, digests: dict[int, str] | None = None) -> Inputs:
    return build_inputs(
        Batch(rows),
        block_size=4,
        dtype=torch.float32,
        device=CPU,
        digest_of=digests.__getitem__ if digests else str,
    )


def listed(values: Any) -> list[int]:
    return values.flatten().tolist()  # type: ignore[no-any-return]


def test_tokens_and_positions_lie_row_after_row_singles_first() -> None:
    inputs = built(row([10, 11, 12], 5, [0, 1]), row([20], 6, [2, 3]), row([30, 31], 0, [4]))
    assert inputs.order == (1, 0, 2)
    assert listed(inputs.ids_1T) == [20, 10, 11, 12, 30, 31]
    assert listed(inputs.positions_1T) == [6, 5, 6, 7, 0, 1]
    assert inputs.ids_1T.shape == inputs.positions_1T.shape == (1, 6)


def test_each_token_is_written_to_its_own_block() -> None:
    """Blocks of four cells: position p of a row is cell p % 4 of its block p // 4."""
    inputs = built(row([1, 1, 1], 3, [7, 2]), row([1], 8, [5, 0, 9]))
    assert listed(inputs.attention.write_T) == [36, 31, 8, 9]


def test_singles_see_their_whole_past_and_padding_is_their_own() -> None:
    singles = built(row([1], 5, [7, 2]), row([1], 1, [3])).attention.singles(Sight())
    assert singles.count == 2
    assert singles.context_BL.tolist() == [[28, 29, 30, 31, 8, 9], [12, 13, 13, 13, 13, 13]]
    assert singles.mask_B11L is not None
    assert singles.mask_B11L.shape == (2, 1, 1, 6)
    assert singles.mask_B11L[:, 0, 0].sum(1).tolist() == [6, 2]


def test_singles_of_one_length_need_no_mask() -> None:
    assert (
        built(row([1], 5, [7, 2]), row([1], 5, [0, 1])).attention.singles(Sight()).mask_B11L is None
    )


@pytest.mark.parametrize(
    ("window", "cells"), [(1, [9]), (3, [31, 8, 9]), (6, [28, 29, 30, 31, 8, 9]), (99, 6)]
)
def test_a_window_is_the_last_tokens_the_new_one_included(
    window: int, cells: list[int] | int
) -> None:
    attention = built(row([1], 5, [7, 2])).attention
    seen = listed(attention.singles(Sight(window)).context_BL)
    assert seen == cells if isinstance(cells, list) else len(seen) == cells
    assert attention.singles(Sight(window)) is attention.singles(Sight(window))


@pytest.mark.parametrize(("chunk", "cells"), [(1, [9]), (4, [8, 9]), (6, 6), (99, 6)])
def test_a_chunk_begins_anew(chunk: int, cells: list[int] | int) -> None:
    attention = built(row([1], 5, [7, 2])).attention
    seen = listed(attention.singles(Sight(chunk=chunk)).context_BL)
    assert seen == cells if isinstance(cells, list) else len(seen) == cells


def test_chunks_see_their_past_and_themselves() -> None:
    attention = built(row([1], 0, [8]), row([1, 1], 3, [7, 2]), row([1, 1, 1], 0, [5])).attention
    assert attention.num_singles == 1
    assert [(c.first, c.count, c.start) for c in attention.chunks] == [(1, 2, 3), (3, 3, 0)]
    assert [c.context_L.tolist() for c in attention.chunks] == [[28, 29, 30, 31, 8], [20, 21, 22]]


def test_singles_of_one_adapter_are_neighbours() -> None:
    rows = [row([n], 1, [n], *uses) for n, uses in enumerate(
        [[(3, 1.0)], [], [(1, 1.0)], [(3, 2.0)], [(1, 0.5)]])]  # fmt: skip
    inputs = built(*rows)
    assert listed(inputs.ids_1T) == [1, 2, 4, 0, 3]
    assert [(slot, token) for slot, token, _ in inputs.body.pairs] == [
        (1, 1),
        (1, 2),
        (3, 3),
        (3, 4),
    ]


def test_only_logits_that_somebody_wants() -> None:
    inputs = built(
        row([1, 2, 3], 0, [0]),
        row([4, 5], 0, [1], sample=True),
        row([6, 7, 8], 0, [2], targets=[7, 8, 9]),
        row([9, 10], 3, [3, 4], sample=True, targets=[10]),
        row([11], 3, [5], sample=True),
    )
    assert inputs.order == (4, 0, 1, 2, 3)
    # Packed: 11 | 1 2 3 | 4 5 | 6 7 8 | 9 10
    assert listed(inputs.wanted_K) == [0, 5, 6, 7, 8, 9, 10]
    assert inputs.wanted == ((0, 1), (1, 0), (1, 1), (2, 3), (5, 2))


def test_the_heads_plan_is_over_those_logits() -> None:
    inputs = built(
        row([1, 2, 3], 0, [0], (2, 1.0)),
        row([4, 5], 0, [1], (3, 0.5), sample=True),
        row([6, 7], 0, [2], (4, 1.0), targets=[7, 8]),
    )
    assert [(slot, token) for slot, token, _ in inputs.head.pairs] == [(3, 0), (4, 1), (4, 2)]
    assert inputs.head.num_tokens == 3
    assert inputs.body.num_tokens == 7


def test_half_prompts_alone_still_ask_for_one() -> None:
    inputs = built(row([1, 2, 3], 0, [0], (2, 1.0)))
    assert listed(inputs.wanted_K) == [0]
    assert inputs.wanted == ((0, 0),)
    assert inputs.head.pairs == ()


def test_sums_are_made_in_the_order_of_digests() -> None:
    uses = [(1, 1.0), (2, 1.0), (3, 1.0)]
    inputs = built(row([1], 0, [0], *uses), digests={1: "c", 2: "a", 3: "b"})
    assert [slot for slot, _, _ in inputs.body.pairs] == [2, 3, 1]


def test_virtual_tokens_are_found_and_want_no_logits() -> None:
    virtual = Row("v", [0, 0, 8, 9], 3, [4, 5], (SlotUse(2, 1.0),), SAMPLE, [9], 2)
    only = Row("w", [0, 0], 0, [6], (SlotUse(2, 1.0),), None, [], 2)
    inputs = built(row([1], 5, [7, 2], sample=True), virtual, only)
    assert [(run.first, run.start, run.count) for run in inputs.virtual] == [(1, 3, 2), (5, 0, 2)]
    assert listed(inputs.positions_1T) == [5, 3, 4, 5, 6, 0, 1]
    # Packed: 1 | 0 0 8 9 | 0 0
    assert listed(inputs.wanted_K) == [0, 3, 4]
    assert inputs.wanted == ((0, 1), (1, 2), (3, 0))


@pytest.mark.parametrize(
    ("begin", "tokens", "logits"),
    [
        (0, [0, 1, 2, 3], [0, 1, 2]),
        (5, [0, 1, 2, 3], [0, 1, 2]),
        (6, [1, 2, 3], [1, 2]),
        (8, [3], [2]),
        (9, [], []),
        (99, [], []),
    ],
)
def test_an_adapter_that_counts_from_a_token_on(
    begin: int, tokens: list[int], logits: list[int]
) -> None:
    """Of positions 5 to 8; the logits of 5, 6 and 8 are wanted."""
    late = Row("l", [1, 2, 3, 4], 5, [7, 2, 0], (SlotUse(3, 0.5, begin),), SAMPLE, [2, 3])
    inputs = built(late)
    assert inputs.body.pairs == tuple((3, token, 0.5) for token in tokens)
    assert inputs.head.pairs == tuple((3, token, 0.5) for token in logits)
    assert (inputs.body.num_tokens, inputs.head.num_tokens) == (4, 3)


def test_adapters_that_count_from_different_tokens_on() -> None:
    uses = (SlotUse(1, 1.0, 7), SlotUse(2, 2.0), SlotUse(3, 3.0, 6))
    inputs = built(Row("l", [1, 2, 3, 4], 5, [7, 2, 0], uses, None))
    by_slot = {
        slot: [token for other, token, _ in inputs.body.pairs if other == slot]
        for slot in (1, 2, 3)
    }
    assert by_slot == {1: [2, 3], 2: [0, 1, 2, 3], 3: [1, 2, 3]}
