"""Decides which drafts run in a step. Pure Python.

A step takes as long as reading the weights, and a little longer for each of its tokens. A draft
adds to the second. It pays if it makes the step's tokens cheaper:

    chance that it comes true > tokens that come of the step so far / (fixed + tokens in it so far)

by a margin, where `fixed` is the number of tokens that take as long as the weights alone. So one
sequence drafts boldly, many draft only what is nearly certain, and beside a long prompt nobody
drafts.

A draft that does not come true costs time and nothing else: each token is still drawn from the
model's own distribution at its position (`lorry.model.verifying`), and the keys and values behind
the last token drawn are written over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence

from lorry.engine.blocks import BlockPool
from lorry.engine.drafter import Drafter
from lorry.engine.limits import Limits
from lorry.engine.recent_answers import AnswerBook
from lorry.engine.sequence import Sequence

MOST = 15
"""Drafts of a sequence in a step."""

GAIN = 1.2
"""A draft has to pay so many times: chances and the measure are estimates, and what is around the
model takes its time, too."""


class Speculation:
    """For the scheduler."""

    def __init__(
        self,
        limits: Limits,
        blocks: BlockPool,
        *,
        always: bool,
        fixed: float,
        suits: Callable[[AbstractSequence[str]], bool] = lambda digests: True,
        answers: AnswerBook | None = None,
    ) -> None:
        """`always`: for requests that do not say whether they want it. `suits` returns whether rows
        with these digests can run with drafts. `answers`: to draft from, too, or None."""
        self._limits = limits
        self._blocks = blocks
        self._always = always
        self._fixed = fixed
        self._suits = suits
        self._answers = answers

    def drafts(
        self, running: AbstractSequence[Sequence], rows: Mapping[str, int]
    ) -> dict[str, list[int]]:
        """Return drafts for the sequences that are better off with some, by the request's id.

        `rows`: the tokens of each of `running` in the step. Blocks are allocated for the drafts if
        there are free ones; nobody is preempted."""
        found: dict[str, list[int]] = {}
        tokens = sum(rows[sequence.request.id] for sequence in running)
        most, come = self._limits.max_num_batched_tokens - tokens, float(tokens)
        for sequence in running:
            drafter = self._drafter(sequence)
            if drafter is None:
                continue
            mine: list[int] = []
            params, chance = sequence.request.params, 1.0
            room = min(
                params.max_new_tokens - len(sequence.answer),
                self._limits.max_model_len - sequence.num_tokens,
            )
            # The last token that there is room for is drawn, not drafted.
            for index in range(min(MOST, most, room - 1)):
                chance *= drafter.chance(index)
                if chance * (self._fixed + tokens) <= GAIN * come:
                    break
                draft = drafter.draft(index)
                if draft in params.eos_token_ids:
                    break
                mine.append(draft)
                come += chance
                tokens += 1
            if mine and self._blocks.grow(sequence.blocks, sequence.num_tokens + len(mine)):
                most -= len(mine)
                found[sequence.request.id] = mine
        return found

    def ended(self, sequence: Sequence) -> None:
        """Keep the answer of a sequence that may have drafts, for those that come after it."""
        if self._answers is not None and sequence.drafter is not None:
            self._answers.enter(sequence.request, sequence.digests, sequence.answer)

    def forget(self, digest: str) -> None:
        """Drop what this adapter has answered."""
        if self._answers is not None:
            self._answers.forget(digest)

    def _drafter(self, sequence: Sequence) -> Drafter | None:
        """Return the drafter of a sequence that decodes, unless it has no drafts."""
        if not sequence.drafts or sequence.missing > 1 or not sequence.answer:
            return None
        if sequence.drafter is None:
            wants = sequence.request.speculative
            wants = self._always if wants is None else wants
            sequence.drafts = wants and self._suits(sequence.digests)
            if sequence.drafts:
                request, book = sequence.request, self._answers
                answers = None if book is None else book.of(request, sequence.digests)
                sequence.drafter = Drafter([*request.prompt_ids, *sequence.answer], answers)
        return sequence.drafter
