"""A mixture of experts in a layer: its scores, its choice and its experts, each compared with what
was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorry.model.compiled.description import MixtureDescription
from lorry.model.compiled.formulas import ACTIVATIONS, factor, same
from lorry.model.compiled.witness import ModuleCall, Unknown, flat
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
    router: ModuleCall


def mixture_of(calls: Sequence[ModuleCall], numbers: Sequence[float]) -> FoundMixture | None:
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
    router, normed, scale = _router(calls, x_TH, index_TK, part_TK, numbers)
    activation, inner = _experts(calls, call, x_TH, index_TK, part_TK)
    described = MixtureDescription(
        experts=call.path,
        router=router.path,
        count=_weight(router).shape[0],
        chosen=index_TK.shape[1],
        inner=inner,
        normed=normed,
        factor=scale,
    )
    return FoundMixture(described, x_TH, flat(call.y), activation, router)


def _weight(call: ModuleCall) -> Any:
    return getattr(call.module, "weight", None)


def _router(
    calls: Sequence[ModuleCall],
    x_TH: Tensor,
    index_TK: Tensor,
    part_TK: Tensor,
    numbers: Sequence[float],
) -> tuple[ModuleCall, bool, float]:
    """The module with the scores' weight, whether the chosen parts are 1 in all, and their
    factor."""
    chosen = index_TK.shape[1]
    for call in calls:
        weight = _weight(call)
        if (
            not isinstance(weight, Tensor)
            or weight.ndim != 2
            or weight.shape[1] != x_TH.shape[1]
            or weight.shape[0] <= int(index_TK.max())
            or not same(call.x, x_TH)
        ):
            continue
        probability_TE = torch.softmax(x_TH @ weight.detach().float().T, -1)
        mine_TK, places_TK = probability_TE.topk(chosen, -1)
        # In any order: what is added up is the same.
        (places_TK, order), (index, theirs) = places_TK.sort(-1), index_TK.sort(-1)
        if not torch.equal(places_TK, index):
            continue
        mine_TK, seen_TK = mine_TK.gather(1, order), part_TK.float().gather(1, theirs)
        for normed in (False, True):
            parts_TK = mine_TK / mine_TK.sum(-1, keepdim=True) if normed else mine_TK
            scale = factor(seen_TK, parts_TK, numbers)
            if scale is not None:
                return call, normed, scale
    raise Unknown("its experts are chosen in an unknown way")


def _experts(
    calls: Sequence[ModuleCall],
    mixture: ModuleCall,
    x_TH: Tensor,
    index_TK: Tensor,
    part_TK: Tensor,
) -> tuple[str, int]:
    """The activation, and the width between an expert's projections."""
    stacks = [call for call in calls if isinstance(call.module, ExpertStack)]
    children = dict(mixture.module.named_children())
    up = [call for call in stacks if call.module is children.get("gate_up_proj")]
    down = [call for call in stacks if call.module is children.get("down_proj")]
    if len(up) != 1 or len(down) != 1:
        raise Unknown("its experts are not quantized, or have no gate")
    order_S = index_TK.flatten().sort(stable=True).indices
    gate_SI, up_SI = up[0].y.chunk(2, -1)
    wanted_SI = down[0].x
    answer_SH = torch.empty_like(down[0].y)
    answer_SH[order_S] = down[0].y * part_TK.flatten()[order_S].unsqueeze(1)
    answer_TH = answer_SH.view(*index_TK.shape, -1).sum(1)
    if not same(up[0].x, x_TH[order_S // index_TK.shape[1]]) or not same(mixture.y, answer_TH):
        raise Unknown("its experts do more than two projections and a gate")
    for name, activation in ACTIVATIONS.items():
        if same(activation(gate_SI) * up_SI, wanted_SI):
            return name, wanted_SI.shape[1]
    raise Unknown("its experts have an activation that is not known")
