"""Draws the tokens of a row with drafts.

Each is drawn as if it were alone: with the logits behind the tokens before it, with the answer so
far, and with the number of its position. So the tokens are those that come without drafts. A draft
only decides whether the next position's logits are of any use: they are if it was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorry.core import Drawn, Sample
from lorry.model.drawing import Drawing
from lorry.model.logits import Logits
from lorry.model.sampler import among, sample


def verified(
    logits: Logits, wish: Sample, drafts: Sequence[int], known: int | None, selection: Drawing
) -> tuple[Drawn, ...] | Exception:
    """Return the tokens drawn, at least one: the drafts that were right, and one more.

    `logits` are those behind the last token of the sequence and behind each draft. `known`: as in
    `among`, or None. Returns what the mask of the first token raised, if it did."""
    answer, made = list(wish.answer), list[Drawn]()
    for place, draft in enumerate((*drafts, None)):
        allowed = wish.allowed
        if wish.mask is not None:
            try:
                allowed = wish.mask(place)
            except Exception as error:  # noqa: BLE001 - a grammar is its user's
                # What came is right all the same, and the next step meets the error again.
                return tuple(made) or error
        one = replace(wish, answer=answer, allowed=allowed)
        if known is not None:
            one = among(one, known)
        (drawn,) = sample(logits[place : place + 1], [one], selection)
        made.append(Drawn(*drawn))
        token = made[-1].token.token_id
        if token != draft:
            break
        answer.append(token)
    return tuple(made)
