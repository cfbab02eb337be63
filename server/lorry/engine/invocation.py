"""Activated LoRA: where in a prompt an adapter is called, and so from where it counts.

The tokens before the call run as the base model does, and what the base keeps of them
could be kept for any adapter. PEFT's rule (`calculate_alora_offsets`): the last place in
the prompt where all of the invocation's tokens stand.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorry.core import AdapterUse
from lorry.errors import InvocationMissing
from lorry_adapters.registry.record import AdapterRef


def uses_of(refs: Sequence[AdapterRef], prompt_ids: Sequence[int]) -> tuple[AdapterUse, ...]:
    """What a request with this prompt tells the engine of its adapters.

    Raises:
        InvocationMissing: the prompt does not call one of them.
    """
    virtual = sum(ref.virtual_tokens for ref in refs if ref.scale != 0.0)
    return tuple(
        AdapterUse(
            ref.name,
            ref.digest,
            ref.scale,
            # An adapter that is not activated by a call counts from the virtual tokens on.
            virtual + _start(ref, prompt_ids) if ref.invocation else 0,
            ref.virtual_tokens,
            ref.is_prefix,
        )
        for ref in refs
    )


def _start(ref: AdapterRef, prompt_ids: Sequence[int]) -> int:
    start = last_place(ref.invocation, prompt_ids)
    if start is None and ref.scale != 0.0:
        raise InvocationMissing(
            f"adapter {ref.name!r} is an activated LoRA, which counts from where the prompt "
            f"has its invocation, the tokens {list(ref.invocation)}; this prompt does not "
            "have them: add the invocation's text, or leave the adapter out"
        )
    return start or 0


def last_place(tokens: Sequence[int], prompt_ids: Sequence[int]) -> int | None:
    """Where `tokens` stand in the prompt for the last time; None: nowhere."""
    wanted = list(tokens)
    for start in range(len(prompt_ids) - len(wanted), -1, -1):
        if list(prompt_ids[start : start + len(wanted)]) == wanted:
            return start
    return None
