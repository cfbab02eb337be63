"""How an adapter was made: enough to make it again, and to say what it was made from."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORD = "training.json"

_PACKAGES = ("lorry", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_base(folder: Path) -> str:
    """sha256 over the digests of the config and of the weights, by name."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    lines = "".join(f"{digest_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_of_text(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
