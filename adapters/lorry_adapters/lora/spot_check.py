"""A self-check when an adapter is loaded: compares some of its deltas with the files.

Loaded weights depend on the parsing of keys, targets, ranks and strengths. Here a few modules are
looked up only by PEFT's own naming, their delta for a random input is computed from the raw
tensors and the raw config, and both must agree. So an error in the mapping is found before
the first request is answered with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.extremes import too_strong
from lorry_adapters.lora.json_text import text_of
from lorry_adapters.lora.methods.lora_method import LORA
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.problems import refusal, some
from lorry_adapters.lora.spot_check_experts import wrong_experts
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, AdapterWeights

_TOLERANCE: Final = 1e-4
_NOT_PLAIN: Final = ("rank_pattern", "alpha_pattern", "kasa_config", "use_bdlora", "use_qalora")
_PREFIXES: Final = ("base_model.model.", "")


def check(folder: Path, weights: AdapterWeights) -> None:
    """Check a LoRA's plain pairs: the first module, one in the middle, and the last; and experts
    too.

    Raises InvalidAdapter if the loaded weights differ from the files, or are too strong to compare.
    """
    # An adapter stored before there was a bound would overflow, and not even equal itself.
    strong = list(too_strong(weights.modules, weights.effects))
    if strong:
        raise refusal(strong)
    config = json.loads(text_of((folder / CONFIG_FILE).read_bytes()))
    if config.get("peft_type") != LORA.name:
        return
    # Patterns give a module a strength that only the parser knows, other options another form.
    simple = not any(config.get(key) for key in _NOT_PLAIN)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        keys = set(file.keys())
        wrong = list(_wrong_pairs(config, keys, file.get_tensor, weights)) if simple else []
        its_own = strength(config) if simple else None
        wrong += wrong_experts(config, sorted(keys), file.get_tensor, weights, its_own)
    if wrong:
        raise InvalidAdapter(
            [
                f"the self-check failed: the weights loaded for {some(wrong)} differ from the "
                "files; this is a defect of the server, please report it with the adapter's config"
            ]
        )


def _wrong_pairs(
    config: Mapping[str, Any],
    keys: set[str],
    read: Callable[[str], Tensor],
    weights: AdapterWeights,
) -> Iterator[str]:
    names = sorted(weights.modules)
    for name in {names[0], names[len(names) // 2], names[-1]} if names else ():
        a_key, b_key = (_key(keys, name, half) for half in "AB")
        if a_key is None or b_key is None:
            # It has another module's name, of which the base's module is a part.
            continue
        a_RI, b_OR = read(a_key).float(), read(b_key).float()
        x_I = torch.randn(a_RI.shape[1], generator=torch.Generator().manual_seed(7))
        expected_O = strength(config) * (b_OR @ (a_RI @ x_I))
        if not _is_same(weights.modules[name], x_I, expected_O):
            yield name


def strength(config: Mapping[str, Any]) -> float:
    """Return PEFT's alpha / r, or alpha / sqrt(r), for a config without patterns."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _key(keys: set[str], module: str, half: str) -> str | None:
    for prefix in _PREFIXES:
        start = f"{prefix}{module}.lora_{half}."
        found = [key for key in keys if key.startswith(start) and key.endswith("weight")]
        if found:
            return found[0]
    return None


def _is_same(pair: LoraPair, x_I: Tensor, expected_O: Tensor) -> bool:
    if pair.a_RI.shape[1] != x_I.shape[0] or pair.b_OR.shape[0] != expected_O.shape[0]:
        return False
    found_O = pair.scaling * (pair.b_OR.float() @ (pair.a_RI.float() @ x_I))
    worst = float((found_O - expected_O).abs().max())
    return worst <= _TOLERANCE * (1 + float(expected_O.abs().max()))
