"""Activated LoRA: finds the position in a prompt from which an adapter applies.

The tokens before it run as the base model does, so their cache could be shared by all adapters.
PEFT's rule (`calculate_alora_offsets`): the last position in the prompt at which all of the
invocation's tokens appear.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorry.core import AdapterUse
from lorry.errors import InvocationMissing
from lorry_adapters.registry.record import AdapterRef


def uses_of(refs: Sequence[AdapterRef], prompt_ids: Sequence[int]) -> tuple[AdapterUse, ...]:
    """Return the uses of a request's adapters for the engine.

    Raises:
        InvocationMissing: the prompt does not contain an adapter's invocation.
    """
    virtual = sum(ref.virtual_tokens for ref in refs if ref.scale != 0.0)
    return tuple(
        AdapterUse(
            ref.name,
            ref.digest,
            ref.scale,
            # An adapter without an invocation applies from the virtual tokens on.
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
            f"adapter {ref.name!r} is an activated LoRA, which applies from its invocation on, the "
            f"tokens {list(ref.invocation)}, and this prompt does not contain them: add the "
            "invocation's text, or leave the adapter out"
        )
    return start or 0


def last_place(tokens: Sequence[int], prompt_ids: Sequence[int]) -> int | None:
    """Return the last position of `tokens` in the prompt, or None."""
    wanted = list(tokens)
    for start in range(len(prompt_ids) - len(wanted), -1, -1):
        if list(prompt_ids[start : start + len(wanted)]) == wanted:
            return start
    return None
