"""The delta with plain torch operations, chosen by the plan's shape. Any device, any dtype.

UNIFORM   every adapter has as many tokens as the next (a decode step over distinct
          adapters): two batched products straight on the slots, nothing gathered.
PADDED    nearly so: the same, through a grid with holes.
SEGMENTS  one adapter, or a prompt beside single tokens: two products an adapter.

Rows of A and B beyond an adapter's rank are zero (the slots keep them so), so a
batch runs at the largest rank of the step and no further.

Letters: T tokens, P pairs, N adapters, M tokens of one adapter, R rank, I in, O out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorry_adapters.lora.plan import ModulePlan, Plan, Shape


def add_planned(
    y_TO: Tensor,
    x_TI: Tensor,
    a_SRI: Tensor,
    b_SRO: Tensor,
    rank_S: Tensor,
    plan: Plan,
    ranks: tuple[int, ...],
) -> None:
    """`Kernel` with these operations."""
    mine = plan.for_ranks(ranks)
    if mine is not None:
        add_delta(y_TO, x_TI, a_SRI, b_SRO, mine)


def add_delta(y_TO: Tensor, x_TI: Tensor, a_SRI: Tensor, b_SRO: Tensor, plan: ModulePlan) -> None:
    """Adds the plan's deltas to `y_TO` in place."""
    if plan.shape is Shape.SEGMENTS:
        _add_segments(y_TO, x_TI, a_SRI, b_SRO, plan)
    elif plan.shape is Shape.UNIFORM:
        _add_uniform(y_TO, x_TI, a_SRI, b_SRO, plan)
    else:
        _add_padded(y_TO, x_TI, a_SRI, b_SRO, plan)


def _active(w_SRX: Tensor, plan: ModulePlan) -> Tensor:
    """The step's adapters of a slot array, at the step's rank: [N, R, X]."""
    if plan.contiguous:
        n = len(plan.segments)
        return w_SRX[plan.first_slot : plan.first_slot + n, : plan.rank]
    return w_SRX[:, : plan.rank].index_select(0, plan.slots_N)


def _add_uniform(
    y_TO: Tensor, x_TI: Tensor, a_SRI: Tensor, b_SRO: Tensor, plan: ModulePlan
) -> None:
    n, first, stop = len(plan.segments), plan.first_token, plan.first_token + plan.num_pairs
    x_NMI = x_TI[first:stop].view(n, plan.width, -1)
    h_NMR = torch.bmm(x_NMI, _active(a_SRI, plan).transpose(1, 2))
    if plan.scale_P1 is not None:
        h_NMR *= plan.scale_P1.view(n, plan.width, 1)
    y_TO[first:stop].view(n, plan.width, -1).baddbmm_(h_NMR, _active(b_SRO, plan))


def _add_padded(y_TO: Tensor, x_TI: Tensor, a_SRI: Tensor, b_SRO: Tensor, plan: ModulePlan) -> None:
    assert plan.place_P is not None
    n = len(plan.segments)
    x_PI = _pairs_of(x_TI, plan)
    grid_GI = x_PI.new_zeros(n * plan.width, x_PI.shape[1])
    grid_GI[plan.place_P] = x_PI
    h_NMR = torch.bmm(grid_GI.view(n, plan.width, -1), _active(a_SRI, plan).transpose(1, 2))
    d_PO = torch.bmm(h_NMR, _active(b_SRO, plan)).flatten(0, 1)[plan.place_P]
    if plan.scale_P1 is not None:
        d_PO *= plan.scale_P1
    _add_pairs(y_TO, d_PO, plan)


def _add_segments(
    y_TO: Tensor, x_TI: Tensor, a_SRI: Tensor, b_SRO: Tensor, plan: ModulePlan
) -> None:
    x_PI = _pairs_of(x_TI, plan)
    in_place = plan.token_P is None
    d_PO = (
        y_TO[plan.first_token : plan.first_token + plan.num_pairs]
        if in_place
        else y_TO.new_zeros(plan.num_pairs, y_TO.shape[1])
    )
    for segment in plan.segments:
        pairs = slice(segment.start, segment.stop)
        h_MR = x_PI[pairs] @ a_SRI[segment.slot, : segment.rank].t()
        if plan.scale_P1 is not None:
            h_MR *= plan.scale_P1[pairs]
        d_PO[pairs].addmm_(h_MR, b_SRO[segment.slot, : segment.rank])
    if not in_place:
        _add_pairs(y_TO, d_PO, plan)


def _pairs_of(x_TI: Tensor, plan: ModulePlan) -> Tensor:
    if plan.token_P is None:
        return x_TI[plan.first_token : plan.first_token + plan.num_pairs]
    return x_TI.index_select(0, plan.token_P)


def _add_pairs(y_TO: Tensor, d_PO: Tensor, plan: ModulePlan) -> None:
    if plan.token_P is None:
        y_TO[plan.first_token : plan.first_token + plan.num_pairs] += d_PO
    else:
        # A token with two adapters has two pairs: the index repeats, so this must add up.
        y_TO.index_add_(0, plan.token_P, d_PO)
