"""What OpenAI's routes make of a body: the answers to several prompts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from lorry.api.completions_schema import CompletionsBody
from lorry.api.openai import OpenAI
from lorry.api.prompts import Prompts
from lorry.api.voices import Voice
from lorry.core import SamplingParams
from support.tokenizer import build_tokenizer

NONE = cast(Any, None)
"""What stands where no answer is asked for."""


def test_what_a_body_says_is_read_once_for_all_prompts() -> None:
    voice = Voice(Prompts(build_tokenizer(add_bos=False)), frozenset())
    openai = OpenAI(voice, NONE, NONE, NONE, NONE, NONE, "")
    body = CompletionsBody(prompt=["a", "b"], allowed_token_ids=[5, 6], bad_words=["x"])
    asked = [((1,), SamplingParams(3, seed=7)), ((2, 3), SamplingParams(4, seed=8))]
    jobs = asyncio.run(openai.jobs_of_all(body, asked, 2))
    assert [(job.prompt_ids, job.params.max_new_tokens, job.params.seed) for job in jobs] == [
        ((1,), 3, 7), ((1,), 3, 8), ((2, 3), 4, 8), ((2, 3), 4, 9)
    ]  # fmt: skip
    # Rules may be as long as the vocabulary.
    assert len({id(job.constraint) for job in jobs}) == 1
    constraint = jobs[0].constraint
    assert constraint is not None and constraint.rules is not None
    assert constraint.rules.only == {5, 6} and constraint.rules.banned
