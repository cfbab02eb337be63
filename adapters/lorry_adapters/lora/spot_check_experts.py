"""The spot check (`spot_check`) of an adapter's effect on experts, in both spellings.

One expert's delta, B A, is computed from the raw tensors like PEFT's `get_delta_weight`, or from
that expert's own linear, and must equal the loaded delta. So must its strength, if no pattern sets
it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from lorry_adapters.lora.columns import columns_of
from lorry_adapters.lora.expert_effects import ExpertLora, ExpertPairs
from lorry_adapters.lora.parameters import peft_writes_now
from lorry_adapters.lora.weights import AdapterWeights

Read = Callable[[str], Tensor]

_ORDER: Final = ("gate_up_proj", "up_proj", "down_proj")
_FORMER: Final = re.compile(
    r"(?:base_model\.model\.)?(?P<block>.+)\.experts\.(?P<expert>\d+)\."
    r"(?P<name>w[123]|gate_proj|up_proj|down_proj)\.lora_A\..*weight"
)
_SECOND: Final = ("w3", "up_proj")
"""The second half of the projection whose first half is the gate."""


def wrong_experts(
    config: Mapping[str, Any],
    keys: list[str],
    read: Read,
    weights: AdapterWeights,
    strength: float | None,
) -> Iterator[str]:
    """Yield paths of parameters whose loaded weights differ from the files. `strength` is the
    config's; None if it has patterns."""
    loaded = {
        path: effect
        for path, effects in weights.effects.items()
        for effect in effects
        if isinstance(effect, ExpertLora)
    }
    if not loaded:
        return
    if config.get("target_parameters"):
        if not peft_writes_now(config.get("peft_version")):
            # The shapes have shown which of the two matrices is which.
            return
        yield from _stacked(config, keys, read, loaded, strength)
    else:
        yield from _linears(keys, read, loaded, strength)


def _stacked(
    config: Mapping[str, Any],
    keys: list[str],
    read: Read,
    loaded: Mapping[str, ExpertLora],
    strength: float | None,
) -> Iterator[str]:
    for path in _some(list(loaded)):
        targets = [str(target) for target in config["target_parameters"]]
        leaves = [leaf for leaf in _ORDER if any(_ends(path, leaf, target) for target in targets)]
        for depth, leaf in enumerate(reversed(leaves)):
            start = f"{path}{'.base_layer' * depth}.lora_"
            halves = [_find(keys, start + half) for half in "AB"]
            mine = loaded[path].pairs.get(leaf, ())
            if None in halves:
                # Without the first part of its path, as in an adapter for hidden states.
                continue
            if len(mine) != 1:
                yield f"{path}.{leaf}"
                continue
            a, b = (read(str(key)).float() for key in halves)
            experts = mine[0].a_ERI.shape[0]
            rank, expert = a.shape[0] // experts, experts - 1
            grouped = columns_of(config).is_grouped(leaf)
            # One expert's columns: the last `rank` of them, or every `experts`-th.
            b_OR = b[:, expert * rank :] if grouped else b[:, expert::experts]
            expected_OI = b_OR @ a[expert * rank :]
            if not _same(mine[0], expert, expected_OI, strength):
                yield f"{path}.{leaf}"


def _linears(
    keys: list[str], read: Read, loaded: Mapping[str, ExpertLora], strength: float | None
) -> Iterator[str]:
    found = sorted(key for key in keys if _FORMER.fullmatch(key))
    for key in _some(found):
        match = _FORMER.fullmatch(key)
        assert match is not None
        path = match["block"].replace("block_sparse_moe", "mlp") + ".experts"
        effect = next((one for at, one in loaded.items() if f".{at}".endswith(f".{path}")), None)
        down = match["name"] in ("w2", "down_proj")
        mine = () if effect is None else effect.pairs.get(_ORDER[2 if down else 0], ())
        second = match["name"] in _SECOND
        here = [one for one in mine if (one.start > 0) == second]
        expected_OI = read(key.replace(".lora_A.", ".lora_B.")).float() @ read(key).float()
        if len(here) != 1 or not _same(here[0], int(match["expert"]), expected_OI, strength):
            yield key.partition(".lora_A.")[0]


def _same(pairs: ExpertPairs, expert: int, expected_OI: Tensor, strength: float | None) -> bool:
    if expert >= pairs.a_ERI.shape[0]:
        return False
    found_OI = pairs.b_EOR[expert].float() @ pairs.a_ERI[expert].float()
    if found_OI.shape != expected_OI.shape:
        return False
    scaling = float(pairs.scaling_E[expert])
    if strength is not None and not math.isclose(scaling, strength, rel_tol=1e-4):
        return False
    return torch.allclose(found_OI, expected_OI, rtol=1e-4, atol=1e-5)


def _ends(path: str, leaf: str, target: str) -> bool:
    return f"{path}.{leaf}" == target or f"{path}.{leaf}".endswith(f".{target}")


def _find(keys: list[str], start: str) -> str | None:
    for key in keys:
        bare = key.removeprefix("base_model.model.")
        if bare.startswith(f"{start}.") and bare.endswith("weight"):
            return key
    return None


def _some(names: list[str]) -> list[str]:
    """Return the first, one in the middle, and the last."""
    every = sorted(names)
    return [every[at] for at in sorted({0, len(every) // 2, len(every) - 1})] if every else []
