"""Text as it streams: never half a character, never a stop string, however it is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from lorry.api.prompts import Prompts
from lorry.engine.text import REPLACEMENT, Detokenizer, StopStrings
from support.tokenizer import VOCAB_SIZE, build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False).backend_tokenizer
SPECIAL = frozenset(
    one for one, token in TOKENIZER.get_added_tokens_decoder().items() if token.special
)
PROMPTS = Prompts(build_tokenizer(add_bos=False))
PLAIN = [one for one in range(VOCAB_SIZE) if one not in SPECIAL]


def byte_fallback() -> Tokenizer:
    """As Llama 2's: pieces with a leading blank, single bytes for everything else."""
    words = ["▁", "▁the", "▁rice", "a", "b", "ice", "▁é"]
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    vocab.update({word: 257 + index for index, word in enumerate(words)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return tokenizer


FALLBACK = byte_fallback()


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def pieces(tokenizer: Tokenizer, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    text = Detokenizer(
        decoder(tokenizer), SPECIAL if tokenizer is TOKENIZER else frozenset(), context
    )
    return [*(text.push(one) for one in ids), text.flush()]


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60))
def test_the_stream_is_the_whole_text(ids: list[int]) -> None:
    whole = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert "".join(pieces(TOKENIZER, ids)) == whole


@given(st.lists(st.sampled_from(PLAIN), max_size=20), st.lists(st.sampled_from(PLAIN), max_size=40))
def test_the_prompt_is_not_repeated(prompt: list[int], ids: list[int]) -> None:
    # The prompt ends with a whole character, as texts do.
    prompt = [*prompt, *TOKENIZER.encode(".").ids]
    before = TOKENIZER.decode(prompt)
    assert before + "".join(pieces(TOKENIZER, ids, prompt)) == TOKENIZER.decode(prompt + ids)


@given(st.text(max_size=40), st.data())
def test_no_replacement_character_for_text_that_has_none(text: str, data: st.DataObject) -> None:
    text = text.replace(REPLACEMENT, "")
    # Single bytes: the worst cut that there is.
    ids = [
        one
        for char in text
        for byte in TOKENIZER.pre_tokenizer.pre_tokenize_str(char)
        for unit in byte[0]
        for one in (TOKENIZER.token_to_id(unit),)
    ]
    shown = pieces(TOKENIZER, ids)
    assert "".join(shown) == text
    assert not any(REPLACEMENT in piece for piece in shown)
    # A stream that breaks off early has shown whole characters only, too.
    cut = data.draw(st.integers(0, len(ids)))
    partial = Detokenizer(decoder(TOKENIZER), SPECIAL)
    assert text.startswith("".join(partial.push(one) for one in ids[:cut]))


@given(st.lists(st.sampled_from(PLAIN), max_size=8), st.lists(st.integers(0, VOCAB_SIZE - 1)))
def test_tokens_known_to_be_whole_change_no_piece(prompt: list[int], ids: list[int]) -> None:
    text = Detokenizer(decoder(TOKENIZER), SPECIAL, prompt, whole=PROMPTS.whole)
    assert [*(text.push(one) for one in ids), text.flush()] == pieces(TOKENIZER, ids, prompt)


@given(st.text(alphabet="ab é€漢🚚", max_size=30), st.data())
def test_byte_fallback_streams_whole_characters(text: str, data: st.DataObject) -> None:
    ids = [1 + byte for byte in text.encode()]
    shown = pieces(FALLBACK, [257, *ids], [257])
    assert "".join(shown) == " " + text
    assert not any(REPLACEMENT in piece for piece in shown)


@given(st.lists(st.integers(1, 263), max_size=40))
def test_bytes_that_are_no_characters_cost_no_word(ids: list[int]) -> None:
    """Such a decoder judges a run of byte tokens as a whole, so the pieces can differ from
    decoding at once; what is around the run must come through all the same."""
    text = "".join(pieces(FALLBACK, ids))
    for word in ("the", "rice"):
        assert text.count(word) >= sum(FALLBACK.id_to_token(one) == f"▁{word}" for one in ids)


def test_noise_is_not_held_back_for_ever() -> None:
    lone = TOKENIZER.token_to_id("Ģ")  # the byte 0x80: never the start of a character
    text = Detokenizer(decoder(TOKENIZER), SPECIAL)
    shown = "".join(text.push(lone) for _ in range(1000))
    assert len(shown) > 500


STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str], keep: bool) -> tuple[str, str | None]:
    """The definition: the stop string that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if keep else end - len(stop)], stop
    return text, None


@given(st.lists(st.text(alphabet="abcd", max_size=5), max_size=12), STOPS, st.booleans())
def test_stop_strings_do_not_depend_on_the_cuts(
    parts: list[str], stops: list[str], keep: bool
) -> None:
    watch = StopStrings(stops, keep=keep)
    shown = ""
    whole, stop = expected("".join(parts), stops, keep)
    for part in parts:
        shown += watch.push(part)
        assert whole.startswith(shown)
        if watch.hit is not None:
            break
    shown += watch.flush()
    assert (shown, watch.hit) == (whole, stop)


@given(st.lists(st.text(alphabet="abcd", max_size=5), max_size=12), STOPS)
def test_a_dropped_stop_string_is_never_shown(parts: list[str], stops: list[str]) -> None:
    watch = StopStrings(stops, keep=False)
    shown = ""
    for part in parts:
        shown += watch.push(part)
        assert not any(stop in shown for stop in stops)
        if watch.hit is not None:
            break


MARKS = ("<a>", "<c>")
"""Special tokens, which are no text."""


@given(
    st.lists(st.one_of(st.sampled_from(MARKS), st.text(alphabet="abc<>", max_size=3)), max_size=12),
    st.lists(
        st.lists(st.sampled_from((*MARKS, "a", "b")), min_size=1, max_size=3).map("".join),
        max_size=3,
    ),
    st.booleans(),
)
def test_a_stop_string_with_a_special_token_in_it_ends_at_it(
    parts: list[str], stops: list[str], keep: bool
) -> None:
    marked = frozenset(one for one in stops if any(mark in one for mark in MARKS))
    watch = StopStrings(stops, keep=keep, marked=marked)
    shown = plain = whole = ""
    for part in parts:
        special = part in MARKS
        shown += watch.push("", part) if special else watch.push(part)
        plain += "" if special else part
        whole += part
        found = any(one in plain for one in stops) or any(one in whole for one in marked)
        assert (watch.hit is not None) == found
        if found:
            break
    shown += watch.flush()
    assert plain.startswith(shown)
    if watch.hit is None:
        assert shown == plain
    elif not keep:
        assert not any(one in shown for one in stops)


def test_a_kept_stop_string_needs_no_waiting() -> None:
    watch = StopStrings(("END",), keep=True)
    assert watch.push("the E") == "the E"
    assert watch.push("N") == "N"
    assert watch.push("D and more") == "D"


def test_text_that_may_begin_a_stop_string_waits() -> None:
    watch = StopStrings(("END",), keep=False)
    assert watch.push("the E") == "the "
    assert watch.push("N") == ""
    assert watch.push("T") == "ENT"
    assert watch.push(" EN") == " "
    assert watch.flush() == "EN"


def test_an_empty_stop_string_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        StopStrings(("",), keep=True)
