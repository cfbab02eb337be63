"""vLLM's fields about tokens beside an answer: their ids, and the prompt's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lorry.api.bounds import MAX_TOP
from lorry.api.openai_schema import SharedBody
from lorry.api.prompts import Prompts
from lorry.api.runs import Step, logprob_of
from lorry.core import TokenLogprob
from lorry.errors import InvalidRequest, UnsupportedParameter

MAX_TOLD: Final = 1 << 15
"""The most entries with the whole vocabulary at each prompt token: an answer of some megabytes."""


@dataclass(frozen=True, slots=True)
class TokenReport:
    ids: bool = False
    top: int | None = None
    """How many of the likeliest tokens are listed with each of the prompt's; None: no list."""

    every: bool = False
    """`top` is the whole vocabulary."""

    @classmethod
    def of(cls, body: SharedBody, prompts: Prompts) -> TokenReport:
        """Read the fields. Raises InvalidRequest."""
        if body.prompt_logprobs is not None and body.stream:
            raise InvalidRequest(
                "prompt_logprobs cannot stream; leave out one of the two", param="prompt_logprobs"
            )
        every = body.prompt_logprobs == -1
        top = prompts.vocab_size if every else body.prompt_logprobs
        return cls(bool(body.return_token_ids), top, every)

    def check(self, given: Sequence[Sequence[int]]) -> None:
        """Raise UnsupportedParameter if the report about these prompts would be too large."""
        if not self.every:
            return
        assert self.top is not None
        told = sum(max(0, len(ids) - 1) for ids in given)
        if told * self.top > MAX_TOLD:
            raise UnsupportedParameter(
                f"prompt_logprobs: -1 is the whole vocabulary, {self.top} tokens at each of {told} "
                f"positions, and at most {MAX_TOLD} are returned; ask for {MAX_TOP} at most",
                param="prompt_logprobs",
            )

    def prompt(
        self,
        prompts: Prompts,
        ids: Sequence[int],
        logprobs: Sequence[TokenLogprob | None] = (),
    ) -> dict[str, Any]:
        """Return the fields about a prompt."""
        told: dict[str, Any] = {}
        if self.ids:
            told["prompt_token_ids"] = list(ids)
        if self.top is not None:
            told["prompt_logprobs"] = [_logprobs(prompts, one, self.top) for one in logprobs]
        return told

    def answer(self, steps: Sequence[Step]) -> dict[str, Any]:
        """Return the fields about an answer, or a piece of it."""
        return {"token_ids": [step.token.token_id for step in steps]} if self.ids else {}


def _logprobs(
    prompts: Prompts, token: TokenLogprob | None, top: int
) -> dict[str, dict[str, Any]] | None:
    """Return the entries by token id; None for the first token, which nothing predicts. The rank of
    a token that is not among the likeliest is unknown."""
    if token is None:
        return None
    ranked: list[tuple[int | None, TokenLogprob]] = [*enumerate(token.top[:top], 1)]
    if all(one.token_id != token.token_id for _, one in ranked):
        ranked = [(None, token), *ranked]
    return {
        str(one.token_id): {
            "logprob": logprob_of(one),
            "rank": rank,
            "decoded_token": prompts.text_of(one.token_id),
        }
        for rank, one in ranked
    }
