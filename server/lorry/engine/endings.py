"""What a request is told that ends by an error of its own, while the others go on."""

from __future__ import annotations

from math import isfinite

from lorry.core import RowResult
from lorry.engine.sequence import Sequence
from lorry.errors import GenerationFailed, RequestError


def grammar_error(error: Exception) -> Exception:
    """Its own words where they are for people."""
    if isinstance(error, RequestError):
        return error
    return GenerationFailed(f"the grammar could not be followed: {error}")


def overflowed(result: RowResult) -> bool:
    """Whether one of its numbers is not finite."""
    drawn = () if result.token is None else (result.token,)
    numbers = (entry.logprob for entry in (*result.prompt, *drawn))
    return not all(map(isfinite, (*numbers, *result.vector)))


def overflow(sequence: Sequence) -> Exception:
    """A log-probability or a vector of `sequence` is not finite."""
    names = [repr(ref.name) for ref in sequence.request.lease.refs]
    if not names:
        return GenerationFailed("the model's numbers overflowed for this prompt")
    told = f"adapter{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return GenerationFailed(f"with {told} the model's numbers overflowed; ask for a smaller scale")
