"""Norm of an adapter's change of each module, ||s·B·A||, and of the base's weight, ||W||.

Frobenius norms. ||B·A||² = sum(BᵀB * AAᵀ) elementwise, two small products: the delta itself,
as large as the base's weight, is never made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter, Problem, Remedy, ToolError
from lorry_adapters.lora.peft_folder import Pair, PeftFolder
from lorry_adapters.lora.problems import some

_ROWS: Final = 1024
"""Rows of a base's weight in double precision at a time."""

_LAYER: Final = re.compile(r"^(?:.*?\.)?(?P<index>\d+)\.(?P<part>.+)$")


@dataclass(frozen=True, slots=True)
class ModuleNorm:
    module: str
    layer: int | None
    part: str
    """The module's path within its layer, or the whole path if it is in none."""
    rank: int
    """0 if it is not a pair of matrices."""
    norm: float
    """||s·B·A||, s the trained strength; for other kinds the norm from `changes`."""
    base: float | None
    """||W||; None if there is no base, or no such weight in it."""

    @property
    def relative(self) -> float | None:
        return self.norm / self.base if self.base else None


def norms(folder: PeftFolder, base: Mapping[str, float] | None = None) -> list[ModuleNorm]:
    """Return one for each LoRA pair, in the layers' order; `base` comes from `base_norms`.

    Raises InvalidAdapter if there is no pair, or a number is not finite.
    """
    pairs, others = folder.pairs()
    if not pairs:
        raise InvalidAdapter(
            [
                Problem(
                    "there is no pair of lora_A and lora_B to measure; the file has "
                    f"{some(others)}. What other kinds change depends on the base",
                    Remedy.GIVE,
                    argument="base",
                )
            ]
        )
    found = []
    for module, pair in pairs.items():
        layer, part = place(module)
        weight = None if base is None else base.get(module)
        norm = pair_norm(folder, pair)
        found.append(ModuleNorm(module, layer, part, pair.rank, norm, weight))
    return found


def pair_norm(folder: PeftFolder, pair: Pair) -> float:
    """Return ||s·B·A||, s the trained strength. Raises InvalidAdapter if a number is not finite."""
    strength = folder.strength(pair.module, pair.rank)
    norm = strength * product_norm(folder.read_b(pair), folder.read(pair.a_key), pair.experts)
    if not math.isfinite(norm):
        raise InvalidAdapter([f"{pair.module} contains NaN or infinite numbers"])
    return abs(norm)


def place(module: str) -> tuple[int | None, str]:
    """Return a module's layer and its path within it: `model.layers.3.mlp.up_proj` -> 3,
    `mlp.up_proj`."""
    found = _LAYER.match(module)
    return (int(found["index"]), found["part"]) if found else (None, module)


def product_norm(b_OR: Tensor, a_RI: Tensor, experts: int = 1) -> float:
    """Return ||B·A|| in double precision; for the pairs of several experts, of all together."""
    a_ERI = a_RI.double().reshape(experts, -1, a_RI.shape[1])
    b_EOR = b_OR.double().reshape(b_OR.shape[0], -1, experts).permute(2, 0, 1)
    square = float(((b_EOR.mT @ b_EOR) * (a_ERI @ a_ERI.mT)).sum())
    # Rounding can push a zero below zero; NaN must stay what it is.
    return 0.0 if square < 0 else math.sqrt(square)


def base_norms(folder: Path, modules: Mapping[str, object]) -> dict[str, float]:
    """Return ||W|| of `modules` by path, read from a model's safetensors one weight at a time.

    A module without a floating-point weight of its own there (stored quantized, tied to another,
    fused with others) is left out. Raises ToolError if the files cannot be read.
    """
    return {module: _norm(weight) for module, weight in base_tensors(folder, modules, "weight")}


def base_tensors(folder: Path, modules: Iterable[str], part: str) -> Iterator[tuple[str, Tensor]]:
    """Yield each module's `part` (weight, bias) as stored, one at a time and in no order; a module
    without a floating-point one of its own is left out. Raises ToolError like `base_norms`."""
    from safetensors import SafetensorError, safe_open

    try:
        files = _files(folder)
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for module in modules:
            key = _key_of(module, part, files)
            if key is not None:
                by_file.setdefault(files[key], []).append((module, key))
        for file, wanted in by_file.items():
            with safe_open(file, framework="pt") as tensors:
                for module, key in wanted:
                    tensor: Tensor = tensors.get_tensor(key)
                    if tensor.is_floating_point():
                        yield module, tensor
    except (OSError, ValueError, SafetensorError) as error:
        raise ToolError(f"the weights in {folder} cannot be read: {error}") from error


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each key."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        return {key: folder / Path(name).name for key, name in content["weight_map"].items()}
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), file)


def _key_of(module: str, part: str, files: Mapping[str, Path]) -> str | None:
    """Hub files of older models lack the first parts of a module's path (`h.0.` for
    `transformer.h.0.`)."""
    path = f"{module}.{part}"
    while path not in files:
        path = path.partition(".")[2]
        if path in ("", part) or place(module)[0] != place(path)[0]:
            return None
    return path


def _norm(weight: Tensor) -> float:
    rows = weight.reshape(weight.shape[0], -1) if weight.ndim > 1 else weight.reshape(1, -1)
    parts = (rows[start : start + _ROWS].double() for start in range(0, rows.shape[0], _ROWS))
    return math.hypot(*(float(torch.linalg.vector_norm(part)) for part in parts))
