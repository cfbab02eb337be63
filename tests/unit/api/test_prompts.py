"""Encoding, truncation, one token's bytes, the chat template."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lorry.api.prompts import Prompts
from lorry.api.tool_prompt import ToolPrompt
from lorry.errors import InvalidRequest, UnsupportedParameter
from support.tokenizer import BOS, build_tokenizer


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(build_tokenizer(add_bos=True))


def encode(prompts: Prompts, text: str, **options: Any) -> list[int]:
    return asyncio.run(prompts.encode(text, param="inputs", **options))


def check_ids(prompts: Prompts, ids: Any) -> list[int]:
    return asyncio.run(prompts.check_ids(ids, param="prompt"))


def test_truncation_keeps_what_comes_first_and_the_last_tokens(prompts: Prompts) -> None:
    whole = encode(prompts, "How do I cook rice?")
    assert whole[0] == BOS
    assert encode(prompts, "How do I cook rice?", truncate=100) == whole
    assert encode(prompts, "How do I cook rice?", truncate=3) == [BOS, *whole[-2:]]
    assert encode(prompts, "How do I cook rice?", truncate=1) == whole[-1:]
    plain = encode(prompts, "How do I cook rice?", add_special_tokens=False, truncate=3)
    assert plain == whole[-3:]


def test_a_beginning_of_text_that_is_there_is_not_put_before_it_again(prompts: Prompts) -> None:
    plain = encode(prompts, "How do I", add_special_tokens=False)
    assert plain[0] != BOS
    assert encode(prompts, "How do I") == [BOS, *plain]
    assert encode(prompts, "<s>How do I") == [BOS, *plain]
    assert encode(prompts, "<s>How do I", add_special_tokens=False) == [BOS, *plain]
    assert encode(prompts, "<s>How do I", add_special_tokens=True) == [BOS, BOS, *plain]
    assert encode(prompts, "How do I<s>") == [BOS, *plain, BOS]
    # Two that the text has itself are its own.
    assert encode(prompts, "<s><s>How do I") == [BOS, BOS, *plain]
    assert encode(prompts, "<s>How do I", truncate=2) == [BOS, plain[-1]]
    assert encode(prompts, "<s>") == [BOS]
    for given in (None, False):
        pieces = asyncio.run(prompts.pieces("<s>How do I", add_special_tokens=given))
        assert [one.id for one in pieces] == [BOS, *plain]


def test_a_tokenizer_that_puts_nothing_before_a_text() -> None:
    prompts = Prompts(build_tokenizer(add_bos=False))
    ids = encode(prompts, "<s>How do I")
    assert ids[0] == BOS and ids.count(BOS) == 1
    assert encode(prompts, "<s><s>a")[:2] == [BOS, BOS]


def test_a_long_text_takes_the_same_way_in_a_thread(prompts: Prompts) -> None:
    text = "rice " * 10_000

    assert prompts.decode(encode(prompts, text)[1:]) == text


def test_the_loop_has_its_turns_while_a_book_is_encoded(prompts: Prompts) -> None:
    """Whatever thread it is in: the interpreter must not be held meanwhile."""

    async def main() -> int:
        book, turns = asyncio.create_task(prompts.encode("rice " * 400_000, param="inputs")), 0
        while not book.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns

    assert asyncio.run(main()) > 20


def test_an_empty_prompt_is_refused(prompts: Prompts) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode(prompts, "")
    assert caught.value.param == "inputs"


def test_bytes_of_tokens_join_to_the_text(prompts: Prompts) -> None:
    text = "Ahoy, 漢字 🚚 é!"
    ids = encode(prompts, text, add_special_tokens=False)
    assert any("\ufffd" in prompts.text_of(one) for one in ids)
    joined = b"".join(bytes(prompts.bytes_of(one) or []) for one in ids)
    assert joined.decode() == text
    assert bytes(prompts.bytes_of(BOS) or []) == b"<s>"
    assert prompts.bytes_of(10**6) is None


def test_a_whole_token_adds_its_text_wherever_it_stands(prompts: Prompts) -> None:
    ids = encode(prompts, "Ahoy, 漢 🚚 é!", add_special_tokens=False)
    wholes = [prompts.whole(one) for one in ids]
    # Of the characters' parts nobody can tell, of the others the text is known.
    assert [one is None for one in wholes] == ["\ufffd" in prompts.text_of(one) for one in ids]
    assert any(wholes) and not all(wholes)
    assert prompts.whole(BOS) is None
    assert prompts.whole(10**6) is None


def test_a_decoder_that_looks_at_neighbours_knows_no_whole_tokens() -> None:
    words = {"<unk>": 0, "▁a": 1, "b": 2}
    backend = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    prompts = Prompts(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert prompts.decode([1, 1]) == "a a"
    assert prompts.whole(1) is None


def test_token_ids(prompts: Prompts) -> None:
    assert check_ids(prompts, [1, 2]) == [1, 2]
    for wrong in ([], [-1], [10**6], [True], ["1"]):
        with pytest.raises(InvalidRequest):
            check_ids(prompts, wrong)


def chat(prompts: Prompts, **options: Any) -> str:
    given: dict[str, Any] = {"tools": None, "variables": {}, **options}
    return asyncio.run(prompts.chats.rendered([{"role": "user", "content": "hi"}], **given)).text


def test_chat_template(prompts: Prompts) -> None:
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat(prompts) == expected


def test_a_template_without_tools_refuses_them_where_no_other_prompt_may_carry_them() -> None:
    prompts = Prompts(build_tokenizer(add_bos=True), tool_prompt=ToolPrompt.TEMPLATE)
    with pytest.raises(UnsupportedParameter, match="tools"):
        chat(prompts, tools=[{"type": "function", "function": {"name": "f"}}])


def test_a_template_gets_its_variables_and_no_more() -> None:
    tokenizer = build_tokenizer(add_bos=True)
    tokenizer.chat_template = "{{ mood }} {{ tools[0]['function']['name'] }}"
    prompts = Prompts(tokenizer)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(prompts, tools=tools, variables={"mood": "calm"}) == "calm f"
    for name in ("tokenize", "chat_template", "messages"):
        with pytest.raises(InvalidRequest, match=name):
            chat(prompts, variables={name: "x"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content.strip() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 + 'x' }}",
        "{% if %}",
    ],
)
def test_what_a_template_refuses_is_the_request_s_fault(template: str) -> None:
    tokenizer = build_tokenizer(add_bos=True)
    tokenizer.chat_template = template
    with pytest.raises(InvalidRequest, match="messages"):
        chat(Prompts(tokenizer))


def test_no_template() -> None:
    tokenizer = build_tokenizer(add_bos=True)
    tokenizer.chat_template = None
    with pytest.raises(UnsupportedParameter, match="no chat template"):
        chat(Prompts(tokenizer))


def test_tokens_beyond_the_bases_embeddings_are_refused() -> None:
    """They would fail the whole step, and every request in it."""
    tokenizer = build_tokenizer(add_bos=True)
    ids = encode(Prompts(tokenizer), "rice")
    small = Prompts(tokenizer, vocab_size=max(ids))
    with pytest.raises(InvalidRequest, match="no embedding"):
        encode(small, "rice")
    with pytest.raises(InvalidRequest):
        check_ids(small, [max(ids)])
