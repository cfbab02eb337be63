"""Checks that adapters can do the task of a request: text, labels or vectors."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.core import Pooling
from lorry.errors import EngineRemedy
from lorry_adapters.errors import InvalidSelection, Problem
from lorry_adapters.registry.record import AdapterRef

CLASSIFIER = "SEQ_CLS"
VECTORS = "FEATURE_EXTRACTION"


def check_task(refs: Sequence[AdapterRef], pooling: Pooling | None) -> None:
    """Raise InvalidSelection, with the remedy that serves the adapter, if they cannot."""
    # At scale 0 an adapter has no effect.
    used = [ref for ref in refs if ref.scale != 0.0]
    classifiers = [ref.name for ref in used if ref.task_type == CLASSIFIER]
    if pooling is Pooling.CLASSIFY:
        if len(classifiers) != 1:
            named = ", ".join(f"{ref.name!r} ({ref.task_type or 'no task_type'})" for ref in used)
            raise InvalidSelection(
                f"labels need one adapter that is a classifier (task_type {CLASSIFIER}), at a "
                f"scale other than 0; the request names {named or 'none'}"
            )
    elif classifiers:
        text = (
            f"adapter {classifiers[0]!r} is a classifier (task_type {CLASSIFIER}) and gives labels"
        )
        raise InvalidSelection(Problem(text, EngineRemedy.ASK_FOR_LABELS))
    vectors = [ref.name for ref in used if ref.task_type == VECTORS]
    if vectors and pooling not in (Pooling.LAST, Pooling.MEAN):
        text = f"adapter {vectors[0]!r} is for vectors (task_type {VECTORS})"
        raise InvalidSelection(Problem(text, EngineRemedy.ASK_FOR_VECTORS))
