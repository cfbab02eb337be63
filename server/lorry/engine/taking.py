"""Takes a step's tokens into an answer, up to the one that ends it. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

from lorry.core import Drawn, Failure, FinishReason
from lorry.engine.endings import grammar_failure
from lorry.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Taken:
    count: int
    """The tokens that belong to the answer: the first of those drawn."""
    finish: FinishReason | None = None
    """Why the last of them ends the answer, if it does."""
    failure: Failure | None = None
    """Why the request fails behind them, if it does."""


def take(sequence: Sequence, drawn: AbstractSequence[Drawn], longest: int) -> Taken:
    """Append as many of `drawn` to the answer as it has room for, up to a token that ends it.
    `longest`: tokens of a sequence."""
    params, following, drafter = sequence.request.params, sequence.following, sequence.drafter
    count = 0
    for one in drawn:
        token_id = one.token.token_id
        sequence.answer.append(token_id)
        if drafter is not None:
            drafter.take(token_id)
        ends = token_id in params.eos_token_ids
        if following is not None and not ends:
            try:
                following.advance(token_id)
                ends = following.finished()
            except Exception as error:  # noqa: BLE001 - a bad grammar ends only its own request
                return Taken(count, failure=grammar_failure(error))
        count += 1
        if ends:
            return Taken(count, FinishReason.STOP)
        if len(sequence.answer) >= params.max_new_tokens or sequence.num_tokens >= longest:
            return Taken(count, FinishReason.LENGTH)
    return Taken(count)
