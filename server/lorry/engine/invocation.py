"""Activated LoRA: where in a prompt an adapter is called, and so from where it counts.

The tokens before the call run as the base model does, and what the base keeps of them
could be kept for any adapter. PEFT's rule (`calculate_alora_offsets`): the last place in
the prompt where all of the invocation's tokens stand.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorry.errors import InvocationMissing
from lorry_adapters.registry.record import AdapterRef


def starts_of(refs: Sequence[AdapterRef], prompt_ids: Sequence[int]) -> tuple[int, ...]:
    """The token of the prompt from which each adapter counts; empty where none of them is
    activated by a call.

    Raises:
        InvocationMissing: the prompt does not call one of them.
    """
    if not any(ref.invocation for ref in refs):
        return ()
    starts = []
    for ref in refs:
        start = last_place(ref.invocation, prompt_ids) if ref.invocation else 0
        if start is None and ref.scale != 0.0:
            raise InvocationMissing(
                f"adapter {ref.name!r} is an activated LoRA, which counts from where the prompt "
                f"has its invocation, the tokens {list(ref.invocation)}; this prompt does not "
                "have them: add the invocation's text, or leave the adapter out"
            )
        starts.append(start or 0)
    return tuple(starts)


def last_place(tokens: Sequence[int], prompt_ids: Sequence[int]) -> int | None:
    """Where `tokens` stand in the prompt for the last time; None: nowhere."""
    wanted = list(tokens)
    for start in range(len(prompt_ids) - len(wanted), -1, -1):
        if list(prompt_ids[start : start + len(wanted)]) == wanted:
            return start
    return None
