"""The `adapters` of every answer: what it was made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """What `merged_adapters` made it of; else absent."""


def used(refs: Sequence[AdapterRef]) -> list[dict[str, Any]]:
    return [
        {"name": ref.name, "version": ref.version, "digest": ref.digest, "scale": ref.scale}
        for ref in refs
    ]
