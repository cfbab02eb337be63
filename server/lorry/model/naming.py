"""What a user may name a base by. Without torch: a mistake is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from lorry.errors import ModelError


def missing_path(model: str) -> ModelError | None:
    """The error for a `model` that can only be a path and leads to nothing."""
    path = Path(model).expanduser()
    meant = model.startswith((".", "/", "~")) or path.suffix == ".gguf" or model.count("/") > 1
    if not meant or path.exists():
        return None
    return ModelError(f"there is no folder and no file {path}")
