"""What an adapter's files tell about it without the base: where it acts, its size, its words.

`summary` describes every tensor; this module puts those of one module of the base together, and
measures the change where the files alone determine it:

- a pair of matrices: ||s·B·A||, s the trained strength (`norms`). For a DoRA this is the pair
  without its magnitudes, whose effect depends on the base.
- (IA)3: ||l - 1||, the distance of the gains from those that change nothing.

Other kinds have no norm here. `changes` measures them against the base's weights, which takes
longer than a server should spend on a question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from lorry_adapters.lora import room, words
from lorry_adapters.lora.methods.method_table import METHODS
from lorry_adapters.lora.peft_folder import PREFIX, Pair, PeftFolder
from lorry_adapters.tools.norms import pair_norm, place
from lorry_adapters.tools.summary import AdapterSummary, ModulePart, module_and_kind, summarize

PAIR: Final = "||s·B·A||"
GAIN: Final = "||l - 1||"

_COPIES: Final = 24
"""Bytes for each number of a pair: as stored, in double precision, and rearranged for experts."""

_MAX_TEXT: Final = 256
"""Characters of a text from the config."""


@dataclass(frozen=True, slots=True)
class ModuleInspection:
    """All that an adapter has for one module of the base."""

    module: str
    layer: int | None
    part: str
    """The module's path within its layer, or the whole path if it is in none."""
    kinds: tuple[str, ...]
    """Its tensors: `lora`, `lora_magnitude_vector`, `full weight`, ..."""
    rank: int | None
    strength: float | None
    """alpha/rank, or alpha/sqrt(rank), of a pair."""
    parameters: int
    bytes: int
    norm: float | None
    """As `Inspection.measure` says; None if the files alone do not tell."""


@dataclass(frozen=True, slots=True)
class Inspection:
    summary: AdapterSummary
    measure: str | None
    """The meaning of the norms: `PAIR`, `GAIN`, or None if there are none."""
    modules: tuple[ModuleInspection, ...]
    """In the layers' order."""
    trained_with: str | None
    """The version of PEFT, from the config, unchecked."""
    revision: str | None
    """The base's revision, from the config, unchecked."""
    words: words.Words


def inspect(folder: Path) -> Inspection:
    """Inspect a stored adapter. Raises InvalidAdapter, OSError, and OutOfMemory before it would
    take more memory than there is."""
    with PeftFolder(folder) as opened:
        seen = summarize(opened)
        norms, measure = _norms(opened)
        return Inspection(
            summary=seen,
            measure=measure,
            modules=_modules(seen, norms),
            trained_with=_text(opened.config, "peft_version"),
            revision=_text(opened.config, "revision"),
            words=words.load(folder),
        )


def _norms(folder: PeftFolder) -> tuple[Mapping[str, float], str | None]:
    pairs, others = folder.pairs()
    if pairs:
        needed = max(_COPIES * _numbers(folder, pair) for pair in pairs.values())
        room.require(needed, "inspecting the adapter")
        return {module: pair_norm(folder, pair) for module, pair in pairs.items()}, PAIR
    method = METHODS.get(folder.peft_type)
    if method is None or method.gate is None or method.gate.idle != 1:
        return {}, None
    found: dict[str, float] = {}
    for key in others:
        module, kind = module_and_kind(key.removeprefix(PREFIX))
        if kind.startswith(method.gate.parameter):
            off = float(torch.linalg.vector_norm(folder.read(key).double() - 1))
            found[module] = math.hypot(found.get(module, 0.0), off)
    return found, GAIN if found else None


def _numbers(folder: PeftFolder, pair: Pair) -> int:
    return folder.entries[pair.a_key].elements + folder.entries[pair.b_key].elements


def _modules(seen: AdapterSummary, norms: Mapping[str, float]) -> tuple[ModuleInspection, ...]:
    by_module: dict[str, list[ModulePart]] = {}
    for part in seen.parts:
        by_module.setdefault(part.module, []).append(part)
    return tuple(
        ModuleInspection(
            module,
            *place(module),
            kinds=tuple(dict.fromkeys(part.kind for part in parts)),
            rank=max((part.rank for part in parts if part.rank is not None), default=None),
            strength=next((part.strength for part in parts if part.strength is not None), None),
            parameters=sum(part.parameters for part in parts),
            bytes=sum(part.bytes for part in parts),
            norm=norms.get(module),
        )
        for module, parts in by_module.items()
    )


def _text(config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None
