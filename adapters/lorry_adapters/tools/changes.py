"""Measures how much an adapter of any kind changes each module, as the server would apply it.

A pair of matrices has a norm of its own (`norms`). The effect of a DoRA, an (IA)3 or a trained bias
depends on the base. So such deltas are applied to every unit vector, or for embeddings to every id:
one module at a time, in float32. The norm is that of the change of weight and bias together. A
delta that is not linear in its input, or not of a linear or an embedding, has no such norm and is
left out, by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from lorry_adapters.errors import ToolError
from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.lora.bottleneck import Bottleneck
from lorry_adapters.lora.effects import Delta, Effect, EffectTarget
from lorry_adapters.lora.expert_effects import AnyEffect, ExpertLora, RouterPair
from lorry_adapters.lora.parts import LoraPair
from lorry_adapters.lora.weights import AdapterWeights
from lorry_adapters.tools.norms import ModuleNorm, base_tensors, place, product_norm

_ROWS: Final = 4096
"""Ids of a table per call."""

_TOLERANCE: Final = 1e-3
"""Tolerance for linearity, relative to the largest number."""


def changes(
    weights: AdapterWeights, layout: BaseLayout, base: Path
) -> tuple[list[ModuleNorm], list[str]]:
    """Return the norm of each module's change, in the layers' order, and the modules left out.

    `base`: a folder of safetensors, read one weight at a time. Raises ToolError if it cannot be
    read, or if the adapter changes no module.
    """
    if not weights.modules and not weights.effects:
        raise ToolError("it puts tokens before the prompt and changes no module of the base")
    paths = [path for path in layout.modules if path in weights.modules or path in weights.effects]
    found: dict[str, ModuleNorm] = {}
    for path, weight, bias in _own_tensors(base, paths, layout):
        norm = _norm_at(layout.modules[path], weight, bias, weights)
        if norm is not None:
            pair = weights.modules.get(path)
            rank = 0 if pair is None else pair.a_RI.shape[0]
            whole = float(torch.linalg.vector_norm(weight.double()))
            found[path] = ModuleNorm(path, *place(path), rank, norm, whole)
    measured = [found[path] for path in paths if path in found]
    stacked = {path: _stacked(path, weights.effects.get(path, ())) for path in paths}
    measured += [one for mine in stacked.values() for one in mine]
    return measured, [path for path in paths if path not in found and not stacked[path]]


def _stacked(path: str, effects: Sequence[AnyEffect]) -> list[ModuleNorm]:
    """Effects on experts, whose weights a base's files keep separately, and on routers."""
    found = []
    for effect in effects:
        if isinstance(effect, RouterPair):
            norm = abs(effect.scaling) * product_norm(effect.b_OR, effect.a_RI)
            found.append(ModuleNorm(path, *place(path), effect.a_RI.shape[0], norm, None))
        elif isinstance(effect, ExpertLora):
            for name, pairs in effect.pairs.items():
                whole = f"{path}.{name}"
                rank = max(one.a_ERI.shape[1] for one in pairs)
                norm = math.hypot(*(one.norm for one in pairs))
                found.append(ModuleNorm(whole, *place(whole), rank, norm, None))
    return found


def _own_tensors(
    base: Path, paths: Sequence[str], layout: BaseLayout
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield (module, weight, bias) in float32; a tied head has the embeddings' weight."""
    biases = dict(base_tensors(base, paths, "bias"))
    stored = list(paths)
    table = layout.input_embedding
    if layout.tied and layout.output_embedding in paths and table and table not in paths:
        stored.append(table)
    for path, weight in base_tensors(base, stored, "weight"):
        if path in paths:
            bias = biases.get(path)
            yield path, weight.float(), None if bias is None else bias.float()
        if layout.tied and path == table and layout.output_embedding in paths:
            yield str(layout.output_embedding), weight.float(), None


def _norm_at(
    module: BaseModule, weight: Tensor, bias: Tensor | None, weights: AdapterWeights
) -> float | None:
    """Return the norm, or None if the effect has none."""
    every = weights.effects.get(module.name, ())
    effects = [effect for effect in every if not isinstance(effect, ExpertLora)]
    pair = weights.modules.get(module.name)
    if any(isinstance(effect, Bottleneck) for effect in effects):
        return None
    with torch.no_grad():
        if module.kind is ModuleKind.EMBEDDING:
            return _table_norm(weight, effects)
        if module.kind not in (ModuleKind.LINEAR, ModuleKind.CONV1D):
            return None
        weight_OI = weight.T.contiguous() if module.kind is ModuleKind.CONV1D else weight
        linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(weight_OI, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return _linear_norm(linear, effects, pair)


def _linear_norm(
    linear: nn.Linear, effects: Sequence[Effect], pair: LoraPair | None
) -> float | None:
    deltas = _bound(linear, linear.weight, effects)
    inputs = linear.in_features
    probe_1I = torch.randn(1, inputs, generator=torch.Generator().manual_seed(3))
    x_TI = torch.cat([torch.zeros(1, inputs), torch.eye(inputs), probe_1I])
    answer_TO = _sum(deltas, x_TI, linear(x_TI))
    if pair is not None:
        answer_TO += pair.scaling * (x_TI @ pair.a_RI.float().T @ pair.b_OR.float().T)
    offset_O, probed_O = answer_TO[0], answer_TO[-1]
    change_IO = answer_TO[1:-1] - offset_O
    expected_O = probe_1I[0] @ change_IO + offset_O
    worst = float((probed_O - expected_O).abs().max())
    if worst > _TOLERANCE * (1 + float(expected_O.abs().max())):
        return None
    return math.hypot(_norm(change_IO), _norm(offset_O))


def _table_norm(table_VH: Tensor, effects: Sequence[Effect]) -> float:
    table = nn.Embedding(table_VH.shape[0], table_VH.shape[1], device="meta")
    table.weight = nn.Parameter(table_VH, requires_grad=False)
    deltas = _bound(table, table_VH, effects)
    rows = len(table_VH)
    pieces = (torch.arange(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS))
    return math.hypot(*(_norm(_sum(deltas, ids_M, table_VH[ids_M])) for ids_M in pieces))


def _bound(module: nn.Module, weight: Tensor, effects: Sequence[Effect]) -> list[Delta]:
    base = EffectTarget(module, lambda: weight.detach().clone(), torch.float32, torch.device("cpu"))
    return [delta for effect in effects if (delta := effect.bind(base)) is not None]


def _sum(deltas: Sequence[Delta], x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros_like(y)
    for delta in deltas:
        total += delta(x, y, torch.ones(1, 1))
    return total


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
