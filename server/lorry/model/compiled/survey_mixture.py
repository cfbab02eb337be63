"""A mixture of experts in a layer: its choice, its gate and its experts, each compared with what
was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lorry.model.compiled.description import MixtureDescription
from lorry.model.compiled.formulas import ACTIVATIONS, clamped, same
from lorry.model.compiled.survey_router import Routed, router_of
from lorry.model.compiled.witness import LOUD, ModuleCall, Unknown, flat
from lorry.model.expert_layouts import holds_experts
from lorry.model.expert_stacks import ExpertStack


@dataclass(frozen=True, slots=True, eq=False)
class FoundMixture:
    described: MixtureDescription
    x_TH: Tensor
    """What the experts read."""
    y_TH: Tensor
    """The experts' answer."""
    activation: str


@dataclass(frozen=True, slots=True)
class _Gate:
    activation: str
    interleaved: bool
    clamp: tuple[float, float] | None


def mixture_of(
    model: nn.Module, calls: Sequence[ModuleCall], numbers: Sequence[float]
) -> FoundMixture | None:
    """The layer's mixture; None where it has none. `numbers`: those of the config.

    Raises:
        Unknown: it is none that the compiled step can run.
    """
    experts = [call for call in calls if holds_experts(call.module)]
    if not experts:
        return None
    if len(experts) > 1 or len(experts[0].inputs) != 3:
        raise Unknown("its experts are called in an unknown way")
    call = experts[0]
    x_TH, (_, index_TK, part_TK) = flat(call.x), call.inputs
    if index_TK.shape != part_TK.shape or index_TK.is_floating_point():
        raise Unknown("its experts are called in an unknown way")
    # Whoever asks a module notes more calls.
    calls = list(calls)
    router = router_of(model, calls, call.path, Routed(x_TH, index_TK, part_TK), numbers)
    gate, inner = _experts(calls, call, x_TH, index_TK, part_TK, numbers)
    described = MixtureDescription(
        experts=call.path,
        router=router,
        count=len(model.get_submodule(router.module).weight),  # type: ignore[arg-type]
        chosen=index_TK.shape[1],
        inner=inner,
        interleaved=gate.interleaved,
        clamp=gate.clamp,
    )
    return FoundMixture(described, x_TH, flat(call.y), gate.activation)


def _experts(
    calls: Sequence[ModuleCall],
    mixture: ModuleCall,
    x_TH: Tensor,
    index_TK: Tensor,
    part_TK: Tensor,
    numbers: Sequence[float],
) -> tuple[_Gate, int]:
    """The gate, and the width between an expert's projections."""
    stacks = [call for call in calls if isinstance(call.module, ExpertStack)]
    module: Any = mixture.module
    children = dict(module.named_children())
    up = [call for call in stacks if call.module is children.get("gate_up_proj")]
    down = [call for call in stacks if call.module is children.get("down_proj")]
    if len(up) != 1 or len(down) != 1:
        raise Unknown("its experts are not quantized, or have no gate")
    expert_S, order_S = index_TK.flatten().sort(stable=True)
    up_SI, y_SH = up[0].y, down[0].y
    if module.has_bias:
        up_SI = up_SI + module.gate_up_proj_bias[expert_S]
        y_SH = y_SH + module.down_proj_bias[expert_S]
    answer_SH = torch.empty_like(y_SH)
    answer_SH[order_S] = y_SH * part_TK.flatten()[order_S].unsqueeze(1)
    answer_TH = answer_SH.view(*index_TK.shape, -1).sum(1)
    if not same(up[0].x, x_TH[order_S // index_TK.shape[1]]) or not same(mixture.y, answer_TH):
        raise Unknown("its experts do more than two projections and a gate")
    return _gate(module, up_SI, down[0].x, numbers), down[0].x.shape[1]


def _gate(module: Any, x_SI: Tensor, y_SI: Tensor, numbers: Sequence[float]) -> _Gate:
    """What made y of x, and makes as much of numbers beyond any limit."""
    loud_SI = LOUD * torch.randn(x_SI.shape, generator=torch.Generator().manual_seed(4))
    tried = [(x_SI, y_SI), (loud_SI, module._apply_gate(loud_SI))]

    def fits(gate: Callable[[Tensor, Tensor], Tensor], interleaved: bool) -> bool:
        return all(same(gate(*_halves(x, interleaved)), y) for x, y in tried)

    own = [v for v in vars(module).values() if isinstance(v, float) and v > 0]
    sizes = [*dict.fromkeys([*own, *(n for n in numbers if n > 0)])]
    for interleaved in (False, True):
        for name, activation in ACTIVATIONS.items():
            if fits(partial(_activated, activation), interleaved):
                return _Gate(name, interleaved, None)
        for clamp in product(sizes, sizes):
            if fits(partial(clamped, alpha=clamp[0], limit=clamp[1]), interleaved):
                return _Gate("silu", interleaved, clamp)
    raise Unknown("its experts have an activation that is not known")


def _activated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


def _halves(x_SI: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return x_SI[:, ::2], x_SI[:, 1::2]
    gate_SI, up_SI = x_SI.chunk(2, -1)
    return gate_SI, up_SI
