"""Adapters made at random for a base, always the same ones, in PEFT's files.

A is as PEFT would start it, B is small: the answers differ from adapter to adapter and
are still text. Shapes are read from the headers of the base's safetensors, so that neither
torch nor the base's weights are needed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lorry.errors import LorryError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "gate_up_proj")

B_STD = 0.02
"""A delta of some percent of what the base's own projection gives."""


class NoProjections(LorryError):
    """The base is none that adapters can be made for."""


Shapes = Mapping[str, tuple[int, int]]
"""(out, in) of every projection, by the module's name."""


def shapes_of(folder: Path) -> Shapes:
    """Of the base in `folder`. Raises NoProjections."""
    shapes: dict[str, tuple[int, int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(file).items():
            module, _, parameter = name.rpartition(".")
            kind = module.rpartition(".")[2]
            if parameter == "weight" and kind in PROJECTIONS + FUSED:
                rows, columns = entry["shape"]
                shapes[module] = (rows, columns)
    if not shapes:
        raise NoProjections(
            f"{folder.name} has no projections that adapters can be made for "
            f"({', '.join(PROJECTIONS)}); measure it with --adapters 0, or with adapters that the "
            "server already has: --adapter-names"
        )
    return shapes


def name_of(index: int, rank: int) -> str:
    return f"bench-r{rank}-{index}"


def write(folder: Path, shapes: Shapes, index: int, rank: int, *, base: str) -> None:
    """The `index`-th adapter of `rank`, into `folder`, which is made."""
    dice = np.random.default_rng([index, rank])
    tensors = {}
    for module, (rows, columns) in sorted(shapes.items()):
        a_RI = dice.standard_normal((rank, columns), dtype=np.float32) / np.float32(columns**0.5)
        b_OR = dice.standard_normal((rows, rank), dtype=np.float32) * np.float32(B_STD)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a_RI
        tensors[f"base_model.model.{module}.lora_B.weight"] = b_OR
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header  # type: ignore[no-any-return]
