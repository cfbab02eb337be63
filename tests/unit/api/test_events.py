"""The frames of `/generate_stream`: the quick way writes what the slow way would."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from lorry.api.generate import GenerateEvents, GenerateRequest
from lorry.api.prompts import Prompts
from lorry.api.runs import Run, Step
from lorry.core import TokenLogprob
from support.tokenizer import build_tokenizer

PROMPTS = Prompts(build_tokenizer(add_bos=False))
ASKED = GenerateRequest(
    "", (), (), full_text=False, details=False, prefill=False, top=False, words=PROMPTS
)


def step(text: str, logprob: float, token_id: int = 7) -> Step:
    return Step(TokenLogprob(token_id, logprob), text, False, (), (), None)


def events() -> GenerateEvents:
    return GenerateEvents(ASKED, cast(Run, SimpleNamespace(refs=(), prompt_tokens=3)))


@given(
    st.text(st.characters(codec="utf-8")) | st.sampled_from(['"', "\\", "\u2028", "</script>"]),
    st.floats(-1e4, 0, width=32),
    st.integers(0, 10**6),
)
def test_a_plain_event_is_byte_for_byte_what_json_makes_of_it(
    text: str, logprob: float, token_id: int
) -> None:
    made = events()
    made.step(0, step("first", -1.0))
    one = step(text, logprob, token_id)
    plain = made.step(0, one)
    assert plain == made._any(one)
    data: dict[str, Any] = json.loads(plain.removeprefix(b"data:"))
    assert data["index"] == 2 and data["token"]["text"] == text


def test_minus_infinity_is_a_number_that_json_has() -> None:
    made = events()
    made.step(0, step("first", -1.0))
    assert b'"logprob":-9999.0' in made.step(0, step("a", float("-inf")))
