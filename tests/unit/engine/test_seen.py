"""The distinct tokens of a text that grows, and the row that carries them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lorry.engine.seen import Seen
from lorry.engine.sequence import Sequence
from support.engine_fakes import request

tokens = st.lists(st.integers(0, 12), max_size=20)


@given(prompt=tokens, parts=st.lists(tokens, max_size=5))
def test_each_token_once(prompt: list[int], parts: list[list[int]]) -> None:
    seen, answer = Seen(prompt), list[int]()
    for part in parts:
        answer += part
        seen.follow(answer)
        assert sorted(seen.tokens) == sorted({*prompt, *answer})


def test_a_row_has_them_if_there_is_a_penalty() -> None:
    asked = request("r", [3, 3, 1], 9)
    plain = Sequence.of(asked, 0).row(3).sample
    assert plain is not None and plain.seen is None
    params = replace(asked.params, repetition_penalty=1.1)
    sequence = Sequence.of(replace(asked, params=params), 0)
    for count, expected in ((0, {1, 3}), (1, {1, 3, 7}), (4, {1, 3, 7, 8, 2})):
        sequence.answer[:] = [7, 8, 2, 7][:count]
        sequence.num_computed = sequence.num_tokens - 1
        sample = sequence.row(1).sample
        assert sample is not None and sample.seen is not None
        assert (set(sample.seen), sample.num_seen) == (expected, count)
        # As if it had to start over.
        sequence.forget_cache()
