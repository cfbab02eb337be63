"""Requests that the scheduler's properties are tried with."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from lorry.core import Caching
from support.engine_fakes import CALLED, PREFIX, PROMPT, VOCABULARY

DIGESTS = ("a", "b", "c", PROMPT, PREFIX, CALLED)


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    max_new_tokens: int
    adapters: list[str]
    scale: float
    eos: frozenset[int]
    prompt_logprobs: int | None
    caller: int
    caching: Caching


tokens = st.integers(0, VOCABULARY - 1)
prompts = st.one_of(
    st.lists(tokens, min_size=1, max_size=10),
    # Most of these begin alike.
    st.builds(lambda count, last: [3] * count + [last], st.integers(0, 9), st.integers(3, 4)),
)
selections = st.lists(st.sampled_from(DIGESTS), max_size=2, unique=True).filter(
    # The registry lets nobody have both.
    lambda digests: not {PROMPT, PREFIX} <= set(digests)
)
asks = st.builds(
    Ask,
    prompt=prompts,
    max_new_tokens=st.integers(1, 12),
    adapters=selections,
    scale=st.sampled_from([1.0, -0.5, 0.0]),
    eos=st.frozensets(tokens, max_size=4),
    prompt_logprobs=st.sampled_from([None, 0]),
    caller=st.integers(0, 2),
    caching=st.sampled_from([Caching()] * 6 + [Caching(False), Caching(salt="of its own")]),
)
