"""`merged_adapters`, LoRAX's field: several adapters merged into one by averaging, TIES or DARE.

A list in `adapter` is summed in the step, each adapter with its own scale, and nothing is stored.
This field is for merges that are not sums: the registry merges the matrices at the first request,
like PEFT, and keeps the result under its digest.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from lorry.advice import advised, message_of
from lorry.api.bodies import Body
from lorry.api.bounds import FirstMistake, Fraction, Texts, Within
from lorry.api.selection import choices_of, keyed
from lorry.errors import InvalidRequest
from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.lora.merge import Recipe
from lorry_adapters.registry.record import MAX_SCALE, AdapterChoice
from lorry_adapters.registry.registry import Registry

STRATEGIES = ("linear", "ties", "dare_linear", "dare_ties")

_FIELD = "parameters.merged_adapters"

Weight = Annotated[float, Within(-MAX_SCALE, MAX_SCALE)]


class MergedAdapters(Body):
    ids: Texts = Field(description="Names, or name@version; at least two.")
    weights: Annotated[list[Weight], FirstMistake()] = Field(
        description="One per id; 1 is the trained strength."
    )
    merge_strategy: str | None = Field(
        default=None, description=f"{', '.join(STRATEGIES)}; linear by default."
    )
    density: Fraction | None = Field(
        default=None, description="Share of the numbers to keep; linear keeps all."
    )
    majority_sign_method: str | None = Field(
        default=None, description="How ties elects a sign: total (the default) or frequency."
    )


@dataclass(frozen=True, slots=True)
class Merged:
    choice: AdapterChoice
    of: list[dict[str, Any]]
    """Its parts, for the answer."""


async def merged(
    registry: Registry, asked: MergedAdapters, user: object, seed: int | None
) -> Merged:
    """Merge. Raises InvalidRequest, and what `Registry.acquire` raises for one of the adapters."""
    if len(asked.ids) != len(asked.weights):
        raise InvalidRequest(
            f"{_FIELD} has {len(asked.ids)} ids and {len(asked.weights)} weights; "
            "give one weight for each id",
            param="merged_adapters",
        )
    strategy = asked.merge_strategy or "linear"
    if strategy not in STRATEGIES:
        raise InvalidRequest(
            f"{_FIELD}.merge_strategy must be one of {', '.join(STRATEGIES)}, "
            f"not {strategy[:80]!r}",
            param="merged_adapters",
        )
    choices = keyed(choices_of(asked.ids, f"{_FIELD}.ids"), user, seed)
    try:
        recipe = Recipe(
            strategy,
            # LoRAX's client cannot leave it out.
            density=None if strategy == "linear" else asked.density,
            majority_sign_method=asked.majority_sign_method or "total",
        )
        parts = list(zip(choices, asked.weights, strict=True))
        choice, refs = await asyncio.to_thread(registry.merged, parts, recipe)
    except (ToolError, InvalidAdapter) as error:
        said = message_of(error)
        if isinstance(error, InvalidAdapter):
            said = "; ".join(map(advised, error.problems)) + (
                " (`lorry adapters merge` has more methods for LoRAs; adapters of any kind are "
                "summed where `adapter` lists them)"
            )
        raise InvalidRequest(f"{_FIELD}: {said}", param="merged_adapters") from error
    return Merged(
        choice,
        [
            {"name": ref.name, "version": ref.version, "digest": ref.digest, "weight": weight}
            for ref, weight in zip(refs, asked.weights, strict=True)
        ],
    )
