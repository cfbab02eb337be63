"""The scheduler and a grammar: every token once, a mask for every draw, one request's end."""

from collections.abc import Sequence

import pytest

from lorry.core import Failure, FailureCode, FinishReason
from lorry.errors import GenerationFailed
from support.engine_fakes import (
    answer_of,
    request,
)
from support.scheduling import Bench, commit_by_hand


class Script:
    """A grammar that allows everything, ends after some tokens, and can break."""

    def __init__(self, length: int, *, break_mask: int = -1, break_advance: int = -1) -> None:
        self.taken: list[int] = []
        self._length = length
        self._break_mask = break_mask
        self._break_advance = break_advance

    def look_ahead(self, drafts: Sequence[int]) -> None:
        pass

    def allowed(self, place: int = 0) -> Sequence[int]:
        if len(self.taken) == self._break_mask:
            raise RuntimeError("out of fuel")
        return [len(self.taken)]

    def advance(self, token_id: int) -> None:
        if len(self.taken) == self._break_advance:
            raise GenerationFailed("does not follow")
        self.taken.append(token_id)

    def finished(self) -> bool:
        return len(self.taken) == self._length


def test_a_grammar_sees_every_token_once_and_ends_the_answer() -> None:
    bench, script = Bench(blocks=4), Script(9)
    asked = request("r", [1, 2, 3, 4], 12)
    # The other one makes it start over: the grammar must not.
    bench.add(request("first", [9, 2, 3], 10))
    bench.add_following(asked, script)
    bench.finish()
    assert bench.scheduler.preemptions
    assert script.taken == bench.answer("r") == answer_of(asked)[:9]
    assert bench.final("r").finish is FinishReason.STOP


def test_the_mask_goes_with_the_token_that_is_drawn() -> None:
    bench = Bench(seqs=2, tokens=2)
    bench.add_following(request("r", [1, 2, 3], 9), Script(9))
    masks = []
    for _ in range(4):
        batch = bench.scheduler.schedule()
        assert batch is not None
        (row,) = batch.rows
        masks.append(None if row.sample is None else row.sample.mask(0))
        commit_by_hand(bench, batch, bench.runner.run(batch))
    assert masks == [None, [0], [1], [2]]


def test_end_of_text_is_not_put_to_the_grammar() -> None:
    script = Script(99)
    asked = request("r", [1, 2], 8)
    end = answer_of(asked)[2]
    bench = Bench()
    bench.add_following(request("r", [1, 2], 8, eos=[end]), script)
    bench.finish()
    assert script.taken == bench.answer("r")[:-1]


@pytest.mark.parametrize(
    ("script", "tokens", "says"),
    [
        (Script(9, break_mask=0), 0, "the grammar could not be followed: out of fuel"),
        (Script(9, break_mask=2), 2, "the grammar could not be followed: out of fuel"),
        (Script(9, break_advance=1), 1, "does not follow"),
    ],
)
def test_a_grammar_that_breaks_ends_its_request_and_no_other(
    script: Script, tokens: int, says: str
) -> None:
    bench = Bench()
    good = request("good", [1, 2], 5)
    bench.add_following(request("bad", [3], 9), script)
    bench.add(good)
    bench.finish()
    assert len(bench.answer("bad")) == tokens
    final = bench.final("bad")
    assert final.failure == Failure(FailureCode.GRAMMAR_FAILED, says)
    assert bench.answer("good") == answer_of(good)
    assert bench.pool.num_used == 0


def test_a_broken_grammar_alone_leaves_nothing() -> None:
    bench = Bench()
    bench.add_following(request("bad", [3], 9), Script(9, break_mask=0))
    assert bench.step() == {"bad": 1}
    assert bench.final("bad").finish is FinishReason.ERROR
    assert bench.pool.num_used == 0 and bench.step() == {}
