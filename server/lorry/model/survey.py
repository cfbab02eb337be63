"""The very first forward pass: which way leads through the model, and what its layers keep.

Packed where its modeling code lets us replace its attention, else padded. That a model
takes a way does not mean that it goes right: `lorry.model.selfcheck` sees to that.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorry.errors import UnsupportedModel
from lorry.model import packed, padded
from lorry.model.kv_cache import Shapes
from lorry.model.loader import LoadedModel
from lorry.model.quiet import quiet
from lorry.model.reach import EVERYWHERE, Reach


@dataclass(frozen=True, slots=True)
class Survey:
    shapes: Shapes
    unpackable: str | None = None
    """Why its rows run padded; None: they are packed."""
    reach: Reach = EVERYWHERE
    """Which tokens its modules are handed."""


def survey(loaded: LoadedModel) -> Survey:
    """Leaves the model switched to the attention of its way.

    Raises:
        UnsupportedModel: neither way is open.
    """
    try:
        with quiet():
            return Survey(packed.measure(loaded), reach=packed.reach(loaded))
    except UnsupportedModel as error:
        return survey_padded(loaded, str(error))


def survey_padded(loaded: LoadedModel, unpackable: str) -> Survey:
    """The padded way, `unpackable` being why it cannot be the packed one.

    Raises:
        UnsupportedModel: it is not open.
    """
    try:
        with quiet():
            shapes = padded.measure(loaded)
            return Survey(shapes, unpackable, padded.reach(loaded, len(shapes)))
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{loaded.layout.architecture} is not served: packed in one row, {unpackable}; "
            f"padded, {error}"
        ) from error
