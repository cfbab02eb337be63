"""How many drafts run in a step. The tokens that they give are compared in
`tests/oracle/test_speculation.py`, the scheduler with drafts of any kind in
`tests/property/test_scheduler.py`."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import replace

import pytest

from lorry.core import Request
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from lorry.engine.sequence import Sequence
from lorry.engine.speculation import MOST, Speculation
from support.engine_fakes import request

TEXT = list(range(100, 150))
REPEATED = [*TEXT, *TEXT[:20]]
"""20 tokens have been repeated so far."""


def decoding(asked: Request, blocks: BlockPool) -> Sequence:
    """All but the last token, which the model has drawn, are in the cache."""
    sequence = Sequence.of(asked, 0)
    sequence.answer.append(TEXT[20])
    sequence.num_computed = sequence.num_tokens - 1
    assert blocks.grow(sequence.blocks, sequence.num_tokens)
    return sequence


def drafts_of(
    *asked: Request,
    always: bool = True,
    fixed: float = 8.0,
    tokens: int = 512,
    length: int = 512,
    blocks: int = 400,
    beside: int = 0,
    suits: bool = True,
) -> list[list[int]]:
    """`beside`: tokens of a prompt in the same step."""
    pool, limits = BlockPool(blocks, 4), Limits(16, tokens, length)
    speculation = Speculation(limits, pool, always=always, fixed=fixed, suits=lambda digests: suits)
    running = [decoding(one, pool) for one in asked]
    rows = {one.id: 1 for one in asked}
    if beside:
        prompt = Sequence.of(request("prompt", range(beside)), 0)
        running.append(prompt)
        rows["prompt"] = beside
    found = speculation.drafts(running, rows)
    for sequence in running:
        mine = found.get(sequence.request.id, [])
        if sequence.answer:
            assert len(sequence.blocks) == pool.blocks_for(sequence.num_tokens + len(mine))
    return [found.get(one.id, []) for one in asked]


def asked(name: str = "r", prompt: AbstractSequence[int] = REPEATED, count: int = 100) -> Request:
    return request(name, prompt, count)


def test_a_repetition_is_drafted_as_long_as_it_pays() -> None:
    (mine,) = drafts_of(asked(), fixed=1e9)
    assert mine == TEXT[21 : 21 + MOST]
    (fewer,) = drafts_of(asked())
    assert 4 <= len(fewer) <= MOST
    assert fewer == mine[: len(fewer)]
    # Where the weights take no time, each token costs its share.
    assert drafts_of(asked(), fixed=0.0) == [[]]


def test_of_many_each_drafts_less() -> None:
    few = drafts_of(*(asked(str(index)) for index in range(2)))
    many = drafts_of(*(asked(str(index)) for index in range(16)))
    assert sum(map(len, many)) / 16 < sum(map(len, few)) / 2
    # 16 tokens cost twice as much as the weights.
    unsure = [asked(str(index), [*TEXT, 1, TEXT[19]]) for index in range(16)]
    assert drafts_of(unsure[0], fixed=20.0) != [[]]
    assert drafts_of(*unsure) == [[]] * 16


def test_beside_a_long_prompt_nobody_drafts() -> None:
    assert drafts_of(asked(), beside=200) == [[]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_token_is_drawn_and_not_drafted(count: int) -> None:
    """One has come."""
    (mine,) = drafts_of(asked(count=count + 1))
    assert len(mine) == count - 1
    (mine,) = drafts_of(asked(), length=len(REPEATED) + 1 + count)
    assert len(mine) == count - 1


def test_they_fit_in_the_step_and_in_the_free_blocks() -> None:
    (mine,) = drafts_of(asked(), tokens=16, fixed=1e9)
    assert len(mine) == 15
    first, second = drafts_of(asked("a"), asked("b"), tokens=20, fixed=1e9)
    assert (len(first), len(second)) == (15, 3)
    assert drafts_of(asked(), blocks=18) == [[]]


def test_an_end_is_never_drafted() -> None:
    ends = replace(asked().params, eos_token_ids=frozenset({TEXT[23]}))
    assert drafts_of(replace(asked(), params=ends)) == [TEXT[21:23]]


def test_a_request_says_whether_it_wants_drafts_and_else_the_server() -> None:
    def some(wants: bool | None, always: bool) -> bool:
        return drafts_of(replace(asked(), speculative=wants), always=always) != [[]]

    assert some(None, True) and some(True, True) and some(True, False)
    assert not some(None, False) and not some(False, True)


def test_not_on_a_path_that_does_not_suit() -> None:
    assert drafts_of(asked(), suits=False) == [[]]
