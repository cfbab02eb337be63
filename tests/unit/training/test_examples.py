"""Which files are training data, and what is said of those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import TrainingError
from lorry.training.examples import ChatExample, PairExample, TextExample, read_examples

CALL = {"id": "1", "function": {"name": "find", "arguments": '{"what": "rice"}'}}

PARTS = [{"type": "text", "text": "Rice"}, {"type": "text", "text": "?"}]

BROKEN_CALL = {"function": {"name": "f", "arguments": "{"}}

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Rice"}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": "boil", "tool_call_id": "1"},
        {"role": "assistant", "content": "Boil it.", "weight": 1},
    ],
    "tools": [{"type": "function", "function": {"name": "find"}}],
    "parallel_tool_calls": False,
}


def test_a_fine_tuning_file_of_openai(lines) -> None:
    (chat,) = read_examples(lines(CHAT))
    assert isinstance(chat, ChatExample)
    assert chat.learned == (4,)
    assert chat.messages[1]["content"] == "Rice?"
    assert chat.messages[2]["tool_calls"][0]["function"]["arguments"] == {"what": "rice"}
    assert chat.tools[0]["function"]["name"] == "find"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "a", "completion": "b"}, "a"),
        ({"prompt": "a", "answer": "b", "source": "a book"}, "a"),
        ({"instruction": "a", "input": "", "output": "b"}, "a"),
        ({"instruction": "a", "input": "c", "output": "b"}, "a\n\nc"),
        ({"question": "a", "response": "b"}, "a"),
    ],
)
def test_pairs_under_the_names_that_people_use(lines, row, prompt: str) -> None:
    assert read_examples(lines(row)) == [PairExample("data.jsonl:1", prompt, "b")]


def test_a_pair_of_chats_is_a_chat_whose_completion_is_learned(lines) -> None:
    prompt = [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "a"}]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]}
    (chat,) = read_examples(lines(row))
    assert isinstance(chat, ChatExample)
    assert chat.learned == (2,)


def test_texts(lines, tmp_path: Path) -> None:
    assert read_examples(lines({"text": "a"})) == [TextExample("data.jsonl:1", "a")]
    (tmp_path / "book.txt").write_text("Once upon a time")
    assert read_examples(tmp_path / "book.txt") == [TextExample("book.txt", "Once upon a time")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", "is list, not an object"),
        ({}, "has no field"),
        ({"promt": "a", "completion": "b"}, "'promt', 'completion'"),
        ({"prompt": 1, "completion": "b"}, "'prompt' is int, not text"),
        ({"prompt": "a", "completion": None}, "'completion' is NoneType"),
        ({"messages": []}, "not a list of messages"),
        ({"messages": ["a"]}, "message 1 is no object with a role"),
        ({"messages": [{"role": "pirate", "content": "a"}]}, "the role 'pirate'"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "that is not text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of the assistant"),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            "message 1 has the weight 0.5",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "calls f with bad JSON",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "has preferences"),
    ],
)
def test_a_line_that_is_no_example_is_named(lines, row, told: str) -> None:
    with pytest.raises(TrainingError) as caught:
        read_examples(lines({"prompt": "a", "completion": "b"}, row))
    assert "data.jsonl:2: " in caught.value.message
    assert told in caught.value.message


def test_all_bad_lines_are_named_up_to_ten(lines) -> None:
    with pytest.raises(TrainingError) as caught:
        read_examples(lines(*["{"] * 12))
    assert "data.jsonl:10: " in caught.value.message
    assert caught.value.message.endswith("and 2 more")


def test_mixed_shapes_are_refused_with_a_line_of_each(lines) -> None:
    with pytest.raises(TrainingError, match=r"pair at data.jsonl:1.*text at data.jsonl:2|text at"):
        read_examples(lines({"prompt": "a", "completion": "b"}, {"text": "c"}))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone.jsonl cannot be read"):
        read_examples(tmp_path / "gone.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(TrainingError, match=r"not UTF-8 \(byte 10\)"):
        read_examples(tmp_path / "bad.jsonl")
    for name in ("empty.jsonl", "empty.txt"):
        (tmp_path / name).write_text("\n")
        with pytest.raises(TrainingError, match=r"no example|is empty"):
            read_examples(tmp_path / name)


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b\xe2\x80\xa8c"}\r\n')
    assert read_examples(path) == [PairExample("windows.jsonl:1", "a", "b\u2028c")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "text",
                    "prompt",
                    "completion",
                    "tools",
                    "tool_calls",
                    "function",
                    "arguments",
                    "name",
                    "weight",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(rows=st.lists(JSON, min_size=1, max_size=3))
def test_whatever_the_file_has_it_is_read_or_refused(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("any") / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    try:
        examples = read_examples(path)
    except TrainingError as error:
        assert error.message
    else:
        assert len(examples) == len(rows)
