"""KV accounting, example by example; every sequence of calls is in `property/test_blocks`."""

import pytest

from lorry.engine.blocks import BlockPool


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)]
)
def test_a_block_holds_its_size_and_no_more(tokens: int, blocks: int) -> None:
    assert BlockPool(9, 4).blocks_for(tokens) == blocks


def test_growing_keeps_what_is_there() -> None:
    pool, blocks = BlockPool(4, 4), []
    assert pool.grow(blocks, 5)
    first = list(blocks)
    assert pool.grow(blocks, 8)
    assert blocks == first
    assert pool.grow(blocks, 9)
    assert blocks[:2] == first
    assert (pool.num_used, pool.num_free) == (3, 1)


def test_growing_to_less_takes_nothing_away() -> None:
    pool, blocks = BlockPool(4, 4), []
    assert pool.grow(blocks, 16)
    assert pool.grow(blocks, 1)
    assert len(blocks) == 4


def test_all_or_nothing() -> None:
    pool, mine, theirs = BlockPool(3, 4), [], []
    assert pool.grow(mine, 8)
    assert not pool.grow(theirs, 8)
    assert theirs == []
    assert pool.num_free == 1
    assert pool.grow(theirs, 4)


def test_a_block_cannot_be_given_back_twice() -> None:
    pool, blocks = BlockPool(2, 4), []
    assert pool.grow(blocks, 4)
    pool.give_back(blocks)
    with pytest.raises(KeyError):
        pool.give_back(blocks)
    assert pool.num_free == 2


def test_the_block_given_back_last_is_the_next_one_out() -> None:
    pool, a, b = BlockPool(8, 4), [], []
    assert pool.grow(a, 12)
    pool.give_back([a[1]])
    assert pool.grow(b, 4)
    assert b == [a[1]]
