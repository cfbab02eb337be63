"""Drafts how a sequence goes on: prompt lookup over its own tokens. Pure Python.

The last tokens are looked up in what came before. Where they were followed by something, that is
the draft. Of several places the one that agrees with the most last tokens is taken, and of equals
the latest (arXiv:2304.04487; transformers calls it prompt lookup). A text that repeats itself with
a period shorter than the draft goes on with that period.

They may be looked up in recent answers of the same adapters, too (`lorry.engine.recent_answers`).
Of equals the sequence's own text is taken.

A draft that came true is followed without a lookup.

Each token of the answer also tells how good the drafts are, whether or not they were used:
`chance` counts how often a draft after so many equal tokens came true. So a sequence that begins
to repeat itself is noticed, and one that does not costs the model nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorry.engine.chances import Chances
from lorry.engine.recent_answers import RecentAnswers
from lorry.engine.token_index import TokenIndex


class Drafter:
    """Of one sequence."""

    def __init__(self, tokens: Sequence[int], answers: RecentAnswers | None = None) -> None:
        """`tokens`: all tokens of the sequence so far. `answers`: None for drafts from its own text
        alone."""
        self._own = TokenIndex(tokens)
        self._own_chances = Chances()
        self._answers = answers
        self._text = self._own.tokens
        """Where the draft is from."""
        self._chances = self._own_chances
        self._at = 0
        """The place of the draft for the next token; 0 for none."""
        self._equal = 0
        """Tokens before it that are equal to the last ones."""
        self._look_up()

    def take(self, token: int) -> None:
        """Add the token that came."""
        came_true = False
        if self._at:
            came_true = self._text[self._at] == token
            self._chances.count(self._equal, came_true)
        self._own.append(token)
        if came_true and self._goes_on(self._at + 1):
            self._at += 1
            self._equal += 1
        else:
            self._look_up()

    def draft(self, index: int) -> int:
        """Return the token that may come `index` tokens after the next one. There must be a draft:
        `chance(index)` is above 0."""
        at, size = self._at + index, len(self._text)
        if at >= size:
            at = self._at + (at - self._at) % (size - self._at)
        return self._text[at]

    def chance(self, index: int) -> float:
        """Return the chance that `draft(index)` comes if all drafts before it came; 0 if there is
        none."""
        if not self._at or not self._goes_on(self._at + index):
            return 0.0
        return self._chances.of(self._equal + index)

    def _goes_on(self, at: int) -> bool:
        """Return whether the text has a token at `at`. The sequence's own goes on for ever."""
        text = self._text
        return text is self._own.tokens or (at < len(text) and text[at] >= 0)

    def _look_up(self) -> None:
        self._text, self._chances = self._own.tokens, self._own_chances
        self._at, self._equal = self._own.find(self._text)
        if self._answers is None:
            return
        text, at, equal = self._answers.find(self._own.tokens)
        # Behind an answer there is nothing to draft.
        if equal > self._equal and text[at] >= 0:
            self._text, self._at, self._equal = text, at, equal
            self._chances = self._answers.chances
