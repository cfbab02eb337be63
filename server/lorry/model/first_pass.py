"""What a first forward pass finds out about a model. `lorry.model.paths` runs it."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.model.kv_cache import Shapes
from lorry.model.reach import EVERYWHERE, Reach


@dataclass(frozen=True, slots=True)
class FirstPass:
    """The result of a model's first forward pass."""

    shapes: Shapes
    unpackable: str | None = None
    """Why its rows are padded. None if they are packed."""
    reach: Reach = EVERYWHERE
    """The tokens that each of its modules receives."""
