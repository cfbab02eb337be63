"""What a sequence copies of a block that begins as its own does, with the toy model of
`test_prefix_cache`, which fails where a cell is not what the row would have computed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lorry.core import BlockCopy, Caching, Drawn, FinishReason, RowResult, TokenLogprob
from lorry.engine.block_keys import BlockContent
from lorry.engine.blocks import MAX_CANDIDATES, BlockPool
from support.engine_fakes import PREFIX, answer_of, request
from support.prefixes import LONG, bench, cached, computed, first_row, one_by_one
from support.scheduling import Bench, commit_by_hand

PROMPT = [1, 2, 3, 4, 5, 6, 7]
"""One block, and most of a second."""


def after(made: Bench, prompt: list[int]) -> tuple[BlockCopy, ...]:
    """The copies of the step that admits a request, which then runs to its end."""
    asked = request(f"after {len(made.events)}", prompt)
    made.add(asked)
    batch = made.scheduler.schedule()
    assert batch is not None
    commit_by_hand(made, batch, made.runner.run(batch))
    made.finish()
    assert made.answer(asked.id) == answer_of(asked)
    return batch.copies


def test_an_answers_last_block_is_copied_and_freed() -> None:
    made, asked = bench(), request("first", PROMPT, 4)
    one_by_one(made, asked)
    # Of 11 tokens the last is not computed: two blocks and half of a third.
    free = made.pool.num_free
    (copy,) = after(made, [*PROMPT, *answer_of(asked), 9, 9])
    assert copy.count == 2
    assert made.pool.num_free == free
    # Four full blocks, whose third is the copy. The original is free.
    assert len(made.pool._entries) == made.pool.num_entered == 4


def test_another_question_after_the_same_system_prompt() -> None:
    """The block in which the system prompt ends has other tokens behind it."""
    made = bench()
    one_by_one(made, request("first", [*PROMPT, 20, 21, 22], 2))
    copies = after(made, [*PROMPT, 30, 31])
    assert [copy.count for copy in copies] == [3]
    assert after(made, [*PROMPT, 20, 21, 9]), "the first one's block is still there"


def test_the_block_that_begins_most_alike() -> None:
    made = bench()
    for name, more in (("a", [7, 8, 9, 1]), ("b", [7, 8, 3, 1]), ("c", [7, 4, 4, 1])):
        one_by_one(made, request(name, [1, 2, 3, 4, *more], 1))
    assert [copy.count for copy in after(made, [1, 2, 3, 4, 7, 8, 3, 9])] == [3]


def test_only_the_latest_are_looked_at() -> None:
    pool, blocks = BlockPool(MAX_CANDIDATES + 1, 2), list[int]()
    assert pool.grow(blocks, pool.num_blocks * 2)
    for number, block in enumerate(blocks):
        pool.enter(block, None, (), BlockContent(b"", (number,), ()))
    assert pool.beginning(BlockContent(b"", (0, 1), ())) is None
    assert pool.beginning(BlockContent(b"", (1, 1), ())) == (blocks[1], 1)
    assert pool.beginning(BlockContent(b"other", (1, 1), ())) is None


def test_equal_ends_are_kept_once() -> None:
    made = bench()
    for number in range(5):
        one_by_one(made, request(f"{number}", PROMPT, 1))
    assert made.pool.num_used == 0
    assert (made.pool.num_entered, len(made.pool._entries)) == (1, 2)


def test_nothing_is_copied_that_saves_too_little() -> None:
    """A quarter of a block is the least."""
    made = Bench(path_of=lambda *_: "toy", blocks=8)
    made.pool = made.scheduler.blocks = BlockPool(8, 16)
    made.scheduler.prefixes._blocks, made.runner.block_size = made.pool, 16
    one_by_one(made, request("first", [5] * 20, 1))
    for equal, copied in ((3, []), (4, [4])):
        assert [c.count for c in after(made, [*[5] * (16 + equal), 6])] == copied


def test_a_salt_keeps_it_apart() -> None:
    made = bench()
    one_by_one(made, request("first", PROMPT, 4, caching=Caching(salt="x")))
    assert after(made, PROMPT) == ()


def test_a_removed_adapters_half_blocks_go_with_it() -> None:
    made = bench()
    asked = request("first", PROMPT[:3], 1, adapters=[("a", 1.0)])
    one_by_one(made, asked)
    made.scheduler.prefixes.forget("a")
    one_by_one(made, replace(asked, id="again", prompt_ids=(*PROMPT,)))
    assert cached(made, "again") == 0


def test_behind_a_prefix_that_ends_within_a_block() -> None:
    """A prefix of five tokens: the block that has the last of them is copied, and so are they."""
    made = bench()
    asked = request("first", PROMPT, 1, adapters=[(PREFIX, 1.0)])
    one_by_one(made, asked, replace(asked, id="second", prompt_ids=(1, 2, 9, 9)))
    assert cached(made, "second") == 2
    assert first_row(made, "second") == 7


def test_a_copy_waits_for_the_step_and_goes_with_its_sequence() -> None:
    """Cancelled between, it leaves nothing that was not computed."""
    made = bench(seqs=1)
    one_by_one(made, request("first", PROMPT, 4))
    asked = request("second", [*PROMPT, *answer_of(request("", PROMPT, 4)), 9, 9])
    made.add(asked)
    sequence = made.scheduler._by_id["second"]
    sequence.uses = ()
    made.scheduler._waiting.remove(sequence)
    made.scheduler._running.append(sequence)
    made.scheduler.prefixes.take(sequence)
    assert made.pool.grow(sequence.blocks, sequence.num_tokens)
    made.scheduler.cancel("second")
    assert made.scheduler.prefixes.copies() == ()
    one_by_one(made, replace(asked, id="third"))
    assert made.answer("third") == answer_of(asked)


def test_what_was_copied_from_is_withdrawn_with_numbers_that_are_not_finite() -> None:
    made = bench()
    one_by_one(made, request("first", [*PROMPT, 20, 21, 22], 1))
    made.add(request("nan", [*PROMPT, 30, 31], 3))
    batch = made.scheduler.schedule()
    assert batch is not None and batch.copies
    commit_by_hand(made, batch, [RowResult((Drawn(TokenLogprob(1, math.nan)),))])
    assert made.final("nan").finish is FinishReason.ERROR
    # The first block was shared, the second copied; the half one behind is of no use now.
    assert made.pool.num_entered == 0
    assert after(made, PROMPT) == ()


@pytest.mark.parametrize("tokens", [3, 5, 64])
def test_a_chat_computes_only_what_is_new(tokens: int) -> None:
    made, prompt = bench(tokens=max(tokens, 8), length=96), list(LONG)
    for turn in range(6):
        asked = request(f"{turn}", prompt, 5)
        one_by_one(made, asked)
        assert made.answer(asked.id) == answer_of(asked)
        new = 13 if turn == 0 else 4
        assert sum(computed(made, asked.id)) == new + 4
        prompt = [*prompt, *answer_of(asked), 40 + turn, 41, 42]
