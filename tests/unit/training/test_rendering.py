"""What of an example is learned, and that training sees what serving sends."""

from __future__ import annotations

from typing import Any

import pytest

from lorry.errors import TrainingError
from lorry.training.data_survey import marked
from lorry.training.examples import ChatExample, PairExample, TextExample
from lorry.training.rendering import LearnedTokens, PairForm, Renderer
from support.tokenizer import BOS, EOS, build_tokenizer

FORGETFUL = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' and loop.last %}(thought) {% endif %}{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Like a template that shows reasoning in the last turn alone."""


def chat(*contents: str, learned: tuple[int, ...] | None = None) -> ChatExample:
    """User and assistant in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    odd = tuple(range(1, len(contents), 2))
    return ChatExample("data.jsonl:1", tuple(messages), odd if learned is None else learned)


def rendered(tokenizer: Any, example: Any, form: PairForm | None = None) -> list[LearnedTokens]:
    return Renderer(tokenizer, frozenset({EOS}), form).sequences([example])


def test_only_answers_are_learned_each_with_its_end(tokenizer) -> None:
    (tokens,) = rendered(tokenizer, chat("Rice?", "Boil it.", "Why?", "It is hard."))
    assert marked(tokens, tokenizer) == (
        "<|im_start|>user\nRice?<|im_end|>\n<|im_start|>assistant\n»Boil it.<|im_end|>«\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n»It is hard.<|im_end|></s>«"
    )


def test_an_answer_of_weight_0_is_context(tokenizer) -> None:
    (tokens,) = rendered(tokenizer, chat("a", "b", "c", "d", learned=(3,)))
    assert marked(tokens, tokenizer).count("»") == 1


def test_nothing_follows_the_last_answer(tokenizer) -> None:
    (tokens,) = rendered(tokenizer, chat("a", "b", "c", "d", learned=(1,)))
    assert "c" not in tokenizer.decode(list(tokens.ids))


def test_the_prompt_is_the_one_that_the_server_sends(tokenizer) -> None:
    """Token for token: the answer's first letters never join the prompt's last token."""
    (tokens,) = rendered(tokenizer, chat("Rice?", "\nboil"))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Rice?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert list(tokens.ids[: len(ids)]) == ids
    assert tokens.learned == (False,) * len(ids) + (True,) * (len(tokens.ids) - len(ids))


def test_a_template_that_rewrites_earlier_turns_makes_several_sequences() -> None:
    tokenizer = build_tokenizer(add_bos=False)
    tokenizer.chat_template = FORGETFUL
    found = [marked(one, tokenizer) for one in rendered(tokenizer, chat("a", "b", "c", "d"))]
    assert found == [
        "<user>a<assistant>»(thought) b</s>«",
        "<user>a<assistant>b<user>c<assistant>»(thought) d</s>«",
    ]


def test_a_template_whose_answers_do_not_begin_with_the_prompt_is_refused(tokenizer) -> None:
    tokenizer = build_tokenizer(add_bos=False)
    tokenizer.chat_template = "{{ messages | length }}{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(TrainingError, match=r"data.jsonl:1: .* message 2 .*--form raw"):
        rendered(tokenizer, chat("a", "b"))


def test_what_a_template_refuses_is_named() -> None:
    tokenizer = build_tokenizer(add_bos=False)
    tokenizer.chat_template = "{{ raise_exception('no tools here') }}"
    with pytest.raises(TrainingError, match=r"data.jsonl:1: .*no tools here"):
        rendered(tokenizer, chat("a", "b"))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (None, ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n»b<|im_end|></s>«"]),
        (PairForm.RAW, ["<s>a»b</s>«"]),
        (
            PairForm.MIXED,
            [
                "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n»b<|im_end|></s>«",
                "<s>a» b</s>«",
            ],
        ),
    ],
)
def test_forms_of_a_pair(tokenizer, form: PairForm | None, expected: list[str]) -> None:
    found = rendered(tokenizer, PairExample("data.jsonl:1", "a", "b"), form)
    assert [marked(one, tokenizer) for one in found] == expected


def test_a_text_begins_and_ends_as_one(tokenizer) -> None:
    (tokens,) = rendered(tokenizer, TextExample("a.txt", "Once"))
    assert tokens.ids[0] == BOS
    assert tokens.ids[-1] == EOS
    assert all(tokens.learned)


def test_a_base_without_a_template_learns_pairs_raw_and_refuses_chats() -> None:
    tokenizer = build_tokenizer(add_bos=False)
    tokenizer.chat_template = None
    (tokens,) = rendered(tokenizer, PairExample("data.jsonl:1", "a", "b"))
    assert marked(tokens, tokenizer) == "a»b</s>«"
    with pytest.raises(TrainingError, match="no chat template"):
        rendered(tokenizer, chat("a", "b"))
    with pytest.raises(TrainingError, match="--form mixed"):
        rendered(tokenizer, PairExample("", "a", "b"), PairForm.MIXED)
