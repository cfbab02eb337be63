"""The base's tokenizer with an adapter's tokens in it: each by its own id, or left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from lorry.api.adapter_tokenizer import with_tokens
from lorry_adapters.lora.words import AddedToken
from support.tokenizer import SPECIAL, VOCAB_SIZE, build_tokenizer

BASE = build_tokenizer(add_bos=False).backend_tokenizer
ROOM = VOCAB_SIZE + 8

tokens = st.builds(
    AddedToken,
    id=st.integers(0, ROOM + 4),
    content=st.sampled_from(["<a>", "<b>", "<c>", "<d>", *SPECIAL, "e", "the"]),
    special=st.booleans(),
)


@given(st.lists(tokens, max_size=6, unique_by=(lambda one: one.id, lambda one: one.content)))
def test_each_has_its_own_id_or_is_left_out(added: list[AddedToken]) -> None:
    made, left_out = with_tokens(BASE, added, ROOM)
    for token in added:
        known = made.token_to_id(token.content) == token.id
        assert known or token in left_out
        if known and token not in left_out:
            assert made.encode(f"x{token.content}y", add_special_tokens=False).ids.count(token.id)
    # What is no special token of the base's is what it was.
    kept = {one.content for one in added}
    for text, number in BASE.get_vocab(with_added_tokens=False).items():
        if text not in SPECIAL and text not in kept:
            assert made.token_to_id(text) == number


def test_those_that_it_knows_cost_nothing() -> None:
    known = [AddedToken(number, text, special=True) for number, text in enumerate(SPECIAL)]
    made, left_out = with_tokens(BASE, known, ROOM)
    assert made is BASE and left_out == ()


@pytest.mark.parametrize(
    ("token", "fits"),
    [
        (AddedToken(VOCAB_SIZE, "<new>"), True),
        (AddedToken(VOCAB_SIZE + 1, "<gap>"), False),
        (AddedToken(ROOM, "<past>"), False),
        (AddedToken(100, "<ordinary>"), False),
        (AddedToken(3, "<renamed>"), True),
    ],
)
def test_where_a_token_may_stand(token: AddedToken, fits: bool) -> None:
    made, left_out = with_tokens(BASE, [token], ROOM)
    assert (left_out == ()) is fits
    assert (made.token_to_id(token.content) == token.id) is fits


def test_reserved_tokens_outside_the_model() -> None:
    base = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.add_special_tokens(["<r0>", "<r1>", "<r2>"])
    made, left_out = with_tokens(base, [AddedToken(3, "<act>", special=True)], 5)
    assert left_out == ()
    assert made.encode("a<act>a<r2>").ids == [0, 3, 0, 4]
    assert base.token_to_id("<act>") is None
