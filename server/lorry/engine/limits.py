"""Upper limits of a step and a sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    max_num_seqs: int
    """Sequences in the cache at once."""
    max_num_batched_tokens: int
    """Tokens in one step."""
    max_model_len: int
    """Prompt and answer of one request, tokens."""
    max_step_time: float | None = None
    """Seconds that a step should take at most; None for no such limit."""
    prefetch: int = 8
    """Waiting requests whose adapters are fetched ahead."""

    def __post_init__(self) -> None:
        # Otherwise the last rows of a full batch would never decode.
        assert self.max_num_batched_tokens >= self.max_num_seqs
