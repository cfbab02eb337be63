"""The `adapters` of every answer: the adapters that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from lorry_adapters.registry.record import AdapterRef


class AdapterMerged(BaseModel):
    name: str
    version: int
    digest: str
    weight: float


class AdapterUsed(BaseModel):
    name: str
    version: int
    digest: str
    scale: float
    of: list[AdapterMerged] | None = None
    """The parts of an adapter of `merged_adapters`; otherwise absent."""

    words: Literal["adapter", "base"] | None = None
    """Whose chat template and other words were used, if the adapter brings some; otherwise
    absent."""


def used(refs: Sequence[AdapterRef]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for ref in refs:
        one = {"name": ref.name, "version": ref.version, "digest": ref.digest, "scale": ref.scale}
        if ref.words:
            one["words"] = "adapter" if len(refs) == 1 and ref.scale != 0 else "base"
        found.append(one)
    return found
