"""A mixture of experts as adapters see it: parameters that hold the weights of all experts.

transformers 5 has one module for all experts of a layer (`use_experts_implementation`), with
two stacked tensors in it, and beside it a router with a matrix of its own. What was there
before, a linear for each projection of each expert, still stands in adapters trained then.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorry.model.expert_stacks import ExpertStack
from lorry_adapters.lora.base import BaseModule, BaseParameter, ModuleKind
from lorry_adapters.lora.expert_effects import routed, scores

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
"""The stacked weights, in their modules' order, that once were a linear of each expert."""

_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
"""What transformers notes on a module of experts that its own implementations can run."""

_FORMER = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_FORMER_MIXTRAL = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
_LIKE_MIXTRAL = ("mixtral", "minimax", "minimax_m2", "phimoe")
"""Model types whose blocks were `block_sparse_moe`."""


def parameters_of(model: PreTrainedModel) -> dict[str, BaseParameter]:
    """By path; empty for a base without experts. The weights may be on the meta device."""
    found: dict[str, BaseParameter] = {}
    routes: dict[type, bool] = {}
    mixtral = model.config.get_text_config().model_type in _LIKE_MIXTRAL
    for path, module in model.named_modules():
        if not holds_experts(module):
            continue
        block, _, _ = path.rpartition(".")
        for one in _experts(path, module, mixtral):
            found[one.shape.name] = one
        for name, beside in model.get_submodule(block).named_children():
            weight = getattr(beside, "weight", None)
            if isinstance(beside, nn.Linear) or weight is None or weight.ndim != 2:
                continue
            kind = type(beside)
            if kind not in routes:
                routes[kind] = _passes_scores(beside)
            if routes[kind]:
                owner = f"{block}.{name}"
                shape = _shape(f"{owner}.weight", ModuleKind.ROUTER, weight.shape)
                old = (_formerly(owner, mixtral),) if module.is_concatenated else ()
                found[shape.name] = BaseParameter(owner, shape, formerly=old)
    return found


def holds_experts(module: nn.Module) -> bool:
    """True if it has the weights of all experts of a layer, and transformers can run it by another
    implementation than its own."""
    return all(hasattr(module, flag) for flag in _FLAGS)


def _experts(path: str, module: nn.Module, mixtral: bool) -> Iterator[BaseParameter]:
    table = _FORMER_MIXTRAL if mixtral else _FORMER
    for name, (experts, out_features, in_features) in _projections(module):
        shape = _shape(f"{path}.{name}", ModuleKind.EXPERTS, (out_features, in_features))
        # Interleaved, or without a gate, they were never linears of one expert.
        plain = module.is_concatenated and module.has_gate
        former = table.get(name, ()) if plain else ()
        formerly = tuple(f"{_formerly(path, mixtral)}.{{}}.{old}" for old in former)
        yield BaseParameter(
            path,
            replace(shape, experts=experts),
            formerly=formerly,
            transposed=bool(module.is_transposed),
        )
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim != 3 or name not in PROJECTIONS:
            yield BaseParameter(path, _shape(f"{path}.{name}", ModuleKind.OTHER, parameter.shape))


def _projections(module: nn.Module) -> Iterator[tuple[str, Sequence[int]]]:
    """Names, and E, O and I, of stacked weights, quantized or not."""
    for name in PROJECTIONS:
        weight = getattr(module, name, None)
        if isinstance(weight, ExpertStack):
            yield name, weight.shape
        elif isinstance(weight, Tensor) and weight.ndim == 3:
            experts, *rest = weight.shape
            yield name, (experts, *(rest[::-1] if module.is_transposed else rest))


def _shape(path: str, kind: ModuleKind, shape: Sequence[int]) -> BaseModule:
    return BaseModule(path, kind, int(shape[-1]), int(shape[0]))


def _formerly(path: str, mixtral: bool) -> str:
    return path.replace(".mlp.", ".block_sparse_moe.") if mixtral else path


def _passes_scores(module: nn.Module) -> bool:
    """Whether all that it does to its input is to multiply it with its weight, once: then
    other scores can be passed through it, and its own choice be made among them."""
    own = dict(module.named_parameters())
    if "weight" not in own or not {*own} <= {"weight", "bias"}:
        return False
    if own["weight"].shape[0] > own["weight"].shape[1]:
        return False
    mine = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        x_TH = torch.randn(5, own["weight"].shape[1], generator=generator)
        try:
            there = mine(x_TH)
            again = routed(mine, scores(mine, x_TH))
        except (RuntimeError, TypeError, ValueError):
            return False
    if not isinstance(there, tuple):
        return False
    return all(
        isinstance(a, torch.Tensor)
        and a.shape[:1] == (5,)
        and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
        for a, b in zip(there, again, strict=True)
    )
