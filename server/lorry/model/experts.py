"""A base's mixtures of experts with quantized experts (`lorry.model.expert_stacks`).

The modules stay transformers' own. Their stacked parameters are replaced, and an implementation of
ours, registered with transformers, multiplies by what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lorry.model import int8
from lorry.model.expert_layouts import PROJECTIONS, holds_experts
from lorry.model.expert_stacks import ExpertStack, Int8Stack, PlainStack, quantized
from lorry.model.half_embedding import dtype_beside_table
from lorry.model.quantize import Precision, Quantization
from lorry_adapters.lora.expert_effects import mixed, projected, runs

IMPLEMENTATION = "lorry_quantized"
"""Its name in transformers."""


def quantize_experts(model: PreTrainedModel, precision: Precision) -> None:
    """Quantize the experts that are not quantized yet, one projection of one layer at a time. On a
    CPU; elsewhere they stay as they are."""
    if precision.quantization is Quantization.NONE or precision.device.type != "cpu":
        return
    for module in list(model.modules()):
        if not holds_experts(module):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if name in PROJECTIONS and parameter.ndim == 3:
                kind, double_quant = precision.quantization.value, precision.double_quant
                quantize_projection(module, name, parameter.data, kind, double_quant=double_quant)
                del parameter


def quantize_projection(
    module: nn.Module, name: str, weight: Tensor, kind: str, *, double_quant: bool
) -> None:
    """Put the stack of `weight`, as transformers has it, in the place of a parameter. `kind` and
    `double_quant`: as `expert_stacks.quantized` has them."""
    weight_EOI = weight.transpose(1, 2) if module.is_transposed else weight
    put(module, name, quantized(weight_EOI, kind, double_quant=double_quant))


def put(module: nn.Module, name: str, stack: ExpertStack) -> None:
    """Put the stack into the module."""
    if name in module._parameters:
        delattr(module, name)
    setattr(module, name, stack)
    config: Any = module.config
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _run)
    config._experts_implementation_internal = IMPLEMENTATION


def stacks_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, ExpertStack]]:
    """Modules with experts, the names of their projections, and the stacks."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ExpertStack):
                yield module, name, child


def use_int8_stacks(model: PreTrainedModel) -> None:
    """Multiply integers where experts are in 8 bits, activations are fp32, and this torch has the
    kernel."""
    if not int8.available() or dtype_beside_table(model) is not torch.float32:
        return
    for module, name, stack in stacks_of(model):
        if isinstance(stack, PlainStack) and "levels" not in stack.base_tensors():
            put(module, name, Int8Stack(stack))
            del stack


def _run(self: Any, x_TH: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The signature is that of transformers' implementations."""
    expert_S, order_S = index_TK.flatten().sort(stable=True)
    every = runs(expert_S)
    return mixed(
        self,
        x_TH,
        weight_TK,
        order_S,
        lambda name, x_SI: projected(self, name, x_SI, expert_S, every),
    )
