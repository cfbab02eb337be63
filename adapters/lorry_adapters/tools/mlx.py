"""Converts MLX-LM's adapters to PEFT's format.

    <module>.lora_a [in, r], <module>.lora_b [r, out]     a linear's or an embedding's pair
    <module>.m [out]                                      the magnitude of a DoRA

Both are PEFT's matrices turned, its `scale` is what multiplies their product (alpha / r in
PEFT's config), and a DoRA is normed in the same way. The base's quantization there is not the
server's here: what the adapter adds is the same, what it is added to is rounded otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lorry_adapters.lora.methods.lora_method import LORA
from lorry_adapters.lora.peft_folder import PREFIX, read_config
from lorry_adapters.lora.problems import refusal, shown, some
from lorry_adapters.lora.tensor_file import TensorFile

WEIGHTS_FILE: Final = "adapters.safetensors"
_KINDS: Final = ("lora", "dora")
_KEY: Final = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)", re.ASCII)
_TABLE: Final = re.compile(r"(?:.+\.)?(?:embed_tokens|wte|word_embeddings|embed_in)", re.ASCII)
"""Embeddings, of which PEFT names the pair otherwise."""


def from_mlx(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) of PEFT. Raises InvalidAdapter with all that has no counterpart there."""
    config = read_config(folder)
    parameters = config.get("lora_parameters")
    kind = config.get("fine_tune_type", "lora")
    problems: list[str] = []
    if kind not in _KINDS:
        problems.append(
            f"fine_tune_type is {shown(kind)}: only {' and '.join(_KINDS)} are adapters"
        )
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        problems.append(f"lora_parameters.scale is {shown(scale)}: it must be a number")
    tensors: dict[str, Tensor] = {}
    modules: dict[str, int] = {}
    with TensorFile(folder / WEIGHTS_FILE) as file:
        for key, entry in file.entries.items():
            found = _KEY.fullmatch(key)
            if found is None or len(entry.shape) != (1 if found["part"] == "m" else 2):
                problems.append(f"{shown(key)} has no counterpart in a PEFT LoRA")
                continue
            module, part = found["module"], found["part"]
            if part == "lora_a":
                modules[module] = entry.shape[1]
            tensor = file.read(key)
            tensors[_key(module, part)] = tensor if part == "m" else tensor.T.contiguous()
    ranks = sorted(set(modules.values()))
    if len(ranks) > 1:
        problems.append(f"modules of different ranks: {some(map(str, ranks))}")
    if not modules:
        problems.append(f"{WEIGHTS_FILE} has no lora_a")
    if problems:
        raise refusal(problems)
    assert isinstance(scale, int | float)
    model = config.get("model") or config.get("base_model_name_or_path")
    return {
        "peft_type": LORA.name,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model if isinstance(model, str) else None,
        "r": ranks[0],
        "lora_alpha": scale * ranks[0],
        "use_dora": kind == "dora",
        "target_modules": sorted(modules),
        "bias": "none",
    }, tensors


def _key(module: str, part: str) -> str:
    if part == "m":
        return f"{PREFIX}{module}.lora_magnitude_vector"
    half = part.removeprefix("lora_").upper()
    if _TABLE.fullmatch(module):
        return f"{PREFIX}{module}.lora_embedding_{half}"
    return f"{PREFIX}{module}.lora_{half}.weight"
