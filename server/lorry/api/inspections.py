"""`GET /adapters/{name}?inspect=true`: where an adapter acts, read from its files.

The files of a version never change, so a result is kept by digest. Reading takes a thread, and one
adapter is read at a time: its products compete with the steps for the processors.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from pydantic import BaseModel, Field

from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.registry import Registry
from lorry_adapters.tools.inspection import Inspection, ModuleInspection, inspect

_KEPT = 32
"""Results. One with a thousand modules takes a few hundred kilobytes."""


class ModuleView(BaseModel):
    module: str
    layer: int | None = Field(description="null: in no layer")
    part: str = Field(description="The module's path within its layer")
    kinds: list[str] = Field(description="Its tensors: lora, lora_magnitude_vector, full weight, …")
    rank: int | None
    strength: float | None = Field(description="alpha/rank, or alpha/sqrt(rank), of a LoRA pair")
    parameters: int
    bytes: int
    norm: float | None = Field(description="As `measure` says; null if the files do not tell")


class InspectionView(BaseModel):
    """What the current version's files tell."""

    method: str
    variants: list[str] = Field(description="Of the method, as rsLoRA or a DoRA's magnitudes")
    share: float = Field(description="Of the base's parameters, which are in `/info`")
    dtypes: list[str]
    initialisation: str | None
    trained_with: str | None = Field(description="PEFT's version")
    revision: str | None = Field(description="The base's, as the adapter's config has it")
    acts: bool | None = Field(description="null: the files do not tell whether it has any effect")
    why: str = Field(description="The reason for `acts`")
    measure: str | None = Field(
        description="Meaning of the norms, which are Frobenius norms: `||s·B·A||` of the pairs, "
        "`||l - 1||` of (IA)3's gains; null if there are none"
    )
    modules: list[ModuleView] = Field(description="In the layers' order")
    chat_templates: dict[str, str] = Field(description="Its own, by name")
    end_tokens: list[str]
    added_tokens: list[str]
    generation: dict[str, float] = Field(description="Defaults for sampling")
    labels: list[str] = Field(description="In the order of a classifier's rows")


class Inspections:
    def __init__(self, registry: Registry, base_parameters: int) -> None:
        self._registry = registry
        self._base_parameters = base_parameters
        self._reading = asyncio.Semaphore(1)
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def of(self, record: AdapterRecord) -> dict[str, Any]:
        """Return what `InspectionView` describes, of the record's current version. Raises
        UnknownAdapter if it was removed meanwhile, AdapterBroken, OutOfMemory."""
        digest = record.current.digest
        if digest not in self._kept:
            # Whoever waits for the same adapter finds it when it is their turn.
            async with self._reading:
                if digest not in self._kept:
                    self._kept[digest] = await asyncio.to_thread(self._read, record)
        self._kept.move_to_end(digest)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[digest]

    def _read(self, record: AdapterRecord) -> dict[str, Any]:
        with self._registry.files(record.name, record.current.version) as (_, folder):
            return self._view(inspect(folder))

    def _view(self, found: Inspection) -> dict[str, Any]:
        seen, own = found.summary, found.words
        return {
            "method": seen.method,
            "variants": list(seen.kinds),
            "share": seen.parameters / self._base_parameters,
            "dtypes": list(seen.dtypes),
            "initialisation": seen.initialisation,
            "trained_with": found.trained_with,
            "revision": found.revision,
            "acts": seen.acts,
            "why": seen.why,
            "measure": found.measure,
            "modules": [_module(one) for one in found.modules],
            "chat_templates": dict(own.chat_templates),
            "end_tokens": list(own.end_tokens),
            "added_tokens": [token.content for token in own.added_tokens],
            "generation": dict(own.generation),
            "labels": list(own.labels),
        }


def _module(one: ModuleInspection) -> dict[str, Any]:
    return {
        "module": one.module,
        "layer": one.layer,
        "part": one.part,
        "kinds": list(one.kinds),
        "rank": one.rank,
        "strength": one.strength,
        "parameters": one.parameters,
        "bytes": one.bytes,
        "norm": one.norm,
    }
