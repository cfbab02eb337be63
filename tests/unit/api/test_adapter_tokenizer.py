"""The base's tokenizer with an adapter's tokens in it: each by its own id, or left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from lorry.api.adapter_tokenizer import AdapterTokenizer, with_tokens
from lorry.api.own_template import OwnTemplates
from lorry_adapters.lora.words import AddedToken, Words
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
    base = build_tokenizer(add_bos=False)
    words = Words(chat_templates={"default": "a"}, added_tokens=tuple(known))
    tokenizer = AdapterTokenizer(base, words, OwnTemplates(), vocab_size=ROOM)
    assert tokenizer.backend_tokenizer is base.backend_tokenizer


def test_a_template_is_chosen_as_transformers_chooses_it() -> None:
    base = build_tokenizer(add_bos=False)
    templates = {"default": "d", "tool_use": "t"}
    theirs = build_tokenizer(add_bos=False)
    theirs.chat_template = templates
    mine = AdapterTokenizer(base, Words(chat_templates=templates), OwnTemplates(), vocab_size=ROOM)
    for tools in (None, [], [{"type": "function"}]):
        assert mine.get_chat_template(tools=tools) == theirs.get_chat_template(tools=tools)
    none = AdapterTokenizer(base, Words(), OwnTemplates(), vocab_size=ROOM)
    assert none.get_chat_template() == base.chat_template


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
