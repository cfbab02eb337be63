"""What a first forward pass finds out about a model. `lorry.model.paths` runs it."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.model.kv_cache import Shapes
from lorry.model.reach import EVERYWHERE, Reach


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What a first forward pass has told of a model."""

    shapes: Shapes
    unpackable: str | None = None
    """Why its rows are padded; None: they are packed."""
    reach: Reach = EVERYWHERE
    """Which tokens its modules are handed."""
