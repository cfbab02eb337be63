"""What an adapter's folder says beside its weights: read within bounds, kept as one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry_adapters.lora import words
from lorry_adapters.lora.words import AddedToken, Words
from support.tokenizer import build_tokenizer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def put(folder: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


def test_a_folder_of_transformers_as_it_saves_it(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(add_bos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|act|>"]})
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    found, passed_over = words.read(tmp_path)
    assert passed_over == ()
    assert found.chat_templates == {"default": "{{ bos_token }}{{ messages[0].content }}"}
    assert found.end_tokens == ("</s>",)
    assert found.special_tokens["bos_token"] == "<s>"
    assert AddedToken(len(tokenizer) - 1, "<|act|>", special=True) in found.added_tokens
    assert found.brings == ("chat_template", "end_tokens", "added_tokens")


def test_older_files_say_the_same(tmp_path: Path) -> None:
    put(
        tmp_path,
        words.TOKENIZER_CONFIG,
        {
            "eos_token": {"content": "<end>", "lstrip": False},
            "chat_template": [
                {"name": "default", "template": "a"},
                {"name": "tool_use", "template": "b"},
            ],
            "added_tokens_decoder": {"7": {"content": "<end>", "special": True}},
        },
    )
    put(tmp_path, words.GENERATION_FILE, {"eos_token_id": [7, 2], "do_sample": True, "top_k": 20})
    put(tmp_path, words.MODEL_CONFIG, {"id2label": {"1": "spam", "0": "ham"}})
    found, passed_over = words.read(tmp_path)
    assert passed_over == ()
    assert found == Words(
        chat_templates={"default": "a", "tool_use": "b"},
        end_tokens=("<end>",),
        end_token_ids=(7, 2),
        special_tokens={"eos_token": "<end>"},
        added_tokens=(AddedToken(7, "<end>", special=True),),
        generation={"top_k": 20},
        labels=("ham", "spam"),
    )


def test_without_sampling_a_generation_config_says_only_its_penalty(tmp_path: Path) -> None:
    put(tmp_path, words.GENERATION_FILE, {"temperature": 0.6, "repetition_penalty": 1.2})
    assert words.read(tmp_path)[0].generation == {"repetition_penalty": 1.2}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (words.TOKENIZER_CONFIG, "{", "tokenizer_config.json is not used: it is not a JSON object"),
        (words.TOKENIZER_CONFIG, {"chat_template": 5}, "chat_template is not used"),
        (words.TEMPLATE_FILE, "a" * (words.MAX_TEMPLATE + 1), "262144 characters"),
        (words.TEMPLATE_FILE, "a" * (words.MAX_FILE + 1), "2097152 bytes"),
        (words.GENERATION_FILE, {"eos_token_id": "end"}, "not a list of a few token ids"),
        (words.GENERATION_FILE, {"do_sample": True, "top_p": 7}, "top_p is not used"),
        (words.MODEL_CONFIG, {"id2label": {"1": "a"}}, "does not name labels from 0 on"),
        (words.TOKENIZER_FILE, '{"added_tokens": [{"id": ', "added_tokens is not used"),
        (words.ADDED_FILE, {"<a>": -5}, "1 of them are malformed"),
    ],
)
def test_what_cannot_be_read_is_passed_over_by_name(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    put(tmp_path, name, value)
    found, passed_over = words.read(tmp_path)
    assert found.brings == () and len(passed_over) == 1
    assert said in passed_over[0]


def test_the_tokens_of_a_large_tokenizer_stand_at_its_beginning(tmp_path: Path) -> None:
    vocabulary = {f"word{number}": number for number in range(300_000)}
    added = [{"id": 1, "content": "<a>", "special": True}]
    put(tmp_path, words.TOKENIZER_FILE, {"added_tokens": added, "model": {"vocab": vocabulary}})
    assert (tmp_path / words.TOKENIZER_FILE).stat().st_size > words.MAX_FILE
    assert words.read(tmp_path) == (Words(added_tokens=(AddedToken(1, "<a>", special=True),)), ())


def test_nothing_to_say_makes_no_file(tmp_path: Path) -> None:
    put(tmp_path, words.TOKENIZER_CONFIG, {"padding_side": "left"})
    found, _ = words.read(tmp_path)
    words.write(found, tmp_path)
    assert not (tmp_path / words.WORDS_FILE).exists()


@given(st.dictionaries(st.sampled_from(words.SOURCES[1:]), JSON, max_size=6))
def test_whatever_the_files_say_it_is_kept_as_it_was_read(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any]
) -> None:
    source, kept = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("kept")
    for name, value in files.items():
        put(source, name, value)
    found, _ = words.read(source)
    words.write(found, kept)
    if found.brings:
        assert words.load(kept) == found
        before = (kept / words.WORDS_FILE).read_bytes()
        words.write(words.load(kept), kept)
        assert (kept / words.WORDS_FILE).read_bytes() == before


@given(JSON)
def test_its_own_file_is_not_believed_either(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    keys = ("chat_templates", "end_tokens", "added_tokens", "generation", "labels")
    put(folder, words.WORDS_FILE, dict.fromkeys(keys, value))
    found, _ = words.read(folder)
    words.write(found, folder)
    assert words.load(folder) == found
