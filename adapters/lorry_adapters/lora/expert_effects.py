"""LoRA on a mixture of experts: on the stacked weights of all experts, and on the router.

An expert is two linears with a gate between them, W_down act(W_up x). A LoRA adds s B A x to the
output of each, with a pair A, B for every expert. So the "module" of a delta is one projection of
one expert, not the experts as a whole: the deltas of two adapters meet before the nonlinearity,
and their sum is PEFT's W + s1 B1 A1 + s2 B2 A2.

A router's delta is added to its scores before the largest are chosen. It may send a token to
other experts than the base would, without any effect on the tokens of other rows.

No weights of the base are copied. Tokens without such adapters take the base's own path
through the module.

Letters: T tokens of the step, M of them with such adapters, K experts of a token, S = M K, sorted
by expert, P those of one adapter; E experts, I in, O out, R rank, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorry_adapters.lora.effects import Delta, Effect, EffectTarget, Indivisible
from lorry_adapters.lora.wrapped import ModuleSlots, SlotEffects, Wrapped, add

Runs = Sequence[tuple[int, int, int]]
"""(expert, first row, last row + 1) of rows sorted by expert; none is empty."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertPairs:
    """A pair for each expert, on some outputs of a projection; in the file's dtype."""

    a_ERI: Tensor
    b_EOR: Tensor
    scaling_E: Tensor
    start: int = 0
    """The first of the projection's outputs that B writes to."""

    @property
    def nbytes(self) -> int:
        return self.a_ERI.nbytes + self.b_EOR.nbytes

    @property
    def norm(self) -> float:
        """The Frobenius norm of all experts' s B A together, in double precision."""
        a_ERI, b_EOR = self.a_ERI.double(), self.b_EOR.double()
        square_E = ((b_EOR.mT @ b_EOR) * (a_ERI @ a_ERI.mT)).sum((1, 2))
        return float((square_E * self.scaling_E.double().square()).sum().clamp_min(0).sqrt())


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLora(Indivisible):
    """An effect on the module with the experts, by the names of its parameters."""

    pairs: Mapping[str, tuple[ExpertPairs, ...]]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for mine in self.pairs.values() for one in mine)

    def bind(self, base: EffectTarget) -> ExpertDeltas:
        return ExpertDeltas(
            {
                name: tuple(
                    HeldPairs(
                        base.held(one.a_ERI.transpose(1, 2).contiguous()),
                        base.held(
                            (one.b_EOR.float() * one.scaling_E[:, None, None])
                            .transpose(1, 2)
                            .contiguous()
                        ),
                        one.start,
                    )
                    for one in mine
                )
                for name, mine in self.pairs.items()
            }
        )


AnyEffect = Effect | ExpertLora
"""An effect on a module of any kind. Binding it gives what the module's slots take."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldPairs:
    """Pairs on the base's device, with the strength in B."""

    a_EIR: Tensor
    b_ERO: Tensor
    start: int

    def add_to(self, y_SO: Tensor, x_SI: Tensor, rows: Rows) -> None:
        x_PI = x_SI if rows.index_P is None else x_SI[rows.index_P]
        out_PO = x_PI.new_empty(x_PI.shape[0], self.b_ERO.shape[2])
        for expert, first, last in rows.runs:
            torch.mm(
                x_PI[first:last] @ self.a_EIR[expert], self.b_ERO[expert], out=out_PO[first:last]
            )
        out_PO *= rows.scale_P1
        mine_SO = y_SO[:, self.start : self.start + out_PO.shape[1]]
        if rows.index_P is None:
            mine_SO += out_PO
        else:
            mine_SO.index_add_(0, rows.index_P, out_PO)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertDeltas:
    """The bound effect of one adapter."""

    held: Mapping[str, tuple[HeldPairs, ...]]

    def add_to(self, name: str, y_SO: Tensor, x_SI: Tensor, rows: Rows) -> None:
        """Add in place. `name` is the projection's parameter."""
        for pairs in self.held.get(name, ()):
            pairs.add_to(y_SO, x_SI, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of one adapter among all rows sorted by expert."""

    index_P: Tensor | None
    """None: all of them."""
    scale_P1: Tensor
    runs: Runs


@dataclass(frozen=True, slots=True, eq=False)
class RouterPair(Indivisible):
    """logits += s B A x."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float

    @property
    def nbytes(self) -> int:
        return self.a_RI.nbytes + self.b_OR.nbytes

    def bind(self, base: EffectTarget) -> Delta:
        a_IR = base.held(self.a_RI.T.contiguous())
        b_RO = base.held((self.b_OR.float() * self.scaling).T.contiguous())
        return lambda x_MI, y_MO, scale_M1: ((x_MI @ a_IR) @ b_RO) * scale_M1


class LoraRouter(Wrapped):
    """A module that scores every expert with one matrix and chooses by the scores."""

    def __init__(self, base: nn.Module, *args: Any) -> None:
        super().__init__(base, *args)
        self.effects: SlotEffects = SlotEffects()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        chosen = self.base(x, *args, **kwargs)
        plan = self.plan
        if plan is None or not self.effects:
            return chosen
        x_TH = x.reshape(-1, x.shape[-1])
        logits_TE = scores(self.base, x_TH)
        deltas = self.effects.of(x_TH, logits_TE, plan)
        if not deltas:
            return chosen
        add(logits_TE, deltas)
        theirs_T1 = torch.zeros(x_TH.shape[0], 1, dtype=torch.bool, device=x.device)
        for tokens, _ in deltas:
            theirs_T1[tokens] = True
        again = routed(self.base, logits_TE)
        return type(chosen)(
            torch.where(theirs_T1.view(*old.shape[:-1], 1), new.view_as(old), old)
            for new, old in zip(again, chosen, strict=True)
        )


def scores(router: nn.Module, x_TH: Tensor) -> Tensor:
    weight = router.weight
    assert isinstance(weight, Tensor)
    return F.linear(x_TH, weight)


def routed(router: nn.Module, logits_TE: Tensor) -> Any:
    """Return the router's result for these scores, by calling it with a weight that passes them
    through."""
    weight = router.weight
    assert isinstance(weight, Tensor)
    experts, width = weight.shape
    eye_EH = torch.eye(experts, width, dtype=logits_TE.dtype, device=logits_TE.device)
    padded_TH = F.pad(logits_TE, (0, width - experts))
    return torch.func.functional_call(router, {"weight": eye_EH}, (padded_TH,))


class LoraExperts(Wrapped):
    """A module with the stacked weights of all experts, as in transformers. It is called with the
    tokens, the experts of each, and the weight of each expert."""

    def __init__(self, base: nn.Module, *args: Any) -> None:
        super().__init__(base, *args)
        self.effects: ModuleSlots[ExpertDeltas] = ModuleSlots()

    def forward(self, x_TH: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        plan = self.plan
        slots = () if plan is None else tuple(s for s in plan.slots if self.effects.get(s))
        if plan is None or not slots:
            base_TH: Tensor = self.base(x_TH, index_TK, weight_TK)
            return base_TH
        cover = plan.cover(slots)
        if cover.rest_N is None:
            return self._with_deltas(x_TH, index_TK, weight_TK, cover.slots)
        mine_M, rest_N = cover.tokens_M, cover.rest_N
        y_TH = torch.empty_like(x_TH)
        y_TH[rest_N] = self.base(x_TH[rest_N], index_TK[rest_N], weight_TK[rest_N])
        y_TH[mine_M] = self._with_deltas(
            x_TH[mine_M], index_TK[mine_M], weight_TK[mine_M], cover.slots
        )
        return y_TH

    def _with_deltas(
        self,
        x_MH: Tensor,
        index_MK: Tensor,
        weight_MK: Tensor,
        slots: Sequence[tuple[int, Tensor | None, Tensor]],
    ) -> Tensor:
        base: Any = self.base
        expert_S, order_S = index_MK.flatten().sort(stable=True)
        token_S = order_S // index_MK.shape[1]
        every = runs(expert_S)
        mine = [
            (deltas, _rows_of(expert_S, token_S, every, is_mine_M, scale_M1))
            for slot, is_mine_M, scale_M1 in slots
            for deltas in self.effects.get(slot)
        ]

        def project(name: str, x_SI: Tensor) -> Tensor:
            y_SO = projected(base, name, x_SI, expert_S, every)
            for deltas, rows in mine:
                deltas.add_to(name, y_SO, x_SI, rows)
            return y_SO

        return mixed(base, x_MH, weight_MK, order_S, project)


def mixed(
    base: Any,
    x_TH: Tensor,
    weight_TK: Tensor,
    order_S: Tensor,
    project: Callable[[str, Tensor], Tensor],
) -> Tensor:
    """Compute what the module `base` answers, like `transformers.integrations.moe`.

    `order_S`: of all experts of all tokens, those with rows of the first expert first; `project`:
    multiplies such rows by one of the module's parameters.
    """
    chosen = weight_TK.shape[1]
    x_SH = x_TH[order_S // chosen]
    if base.has_gate:
        hidden_SI = base._apply_gate(project("gate_up_proj", x_SH))
    else:
        hidden_SI = base.act_fn(project("up_proj", x_SH))
    y_SH = project("down_proj", hidden_SI)
    if base.has_post_expert_norm:
        y_SH = base.post_expert_norm(y_SH)
    y_SH = y_SH * weight_TK.flatten()[order_S].unsqueeze(1)
    in_order_SH = torch.empty_like(y_SH)
    in_order_SH[order_S] = y_SH
    return in_order_SH.view(-1, chosen, y_SH.shape[1]).sum(1).to(x_TH.dtype)


def runs(expert_S: Tensor) -> Runs:
    """Return the runs of sorted experts."""
    experts, counts = torch.unique_consecutive(expert_S, return_counts=True)
    found, first = [], 0
    for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
        found.append((expert, first, first + count))
        first += count
    return found


def _rows_of(
    expert_S: Tensor, token_S: Tensor, every: Runs, is_mine_M: Tensor | None, scale_M1: Tensor
) -> Rows:
    if is_mine_M is None:
        return Rows(None, scale_M1[token_S], every)
    index_P = is_mine_M[token_S].nonzero()[:, 0]
    return Rows(index_P, scale_M1[token_S[index_P]], runs(expert_S[index_P]))


def projected(base: Any, name: str, x_SI: Tensor, expert_S: Tensor, every: Runs) -> Tensor:
    """Compute the base's own output, like `transformers.integrations.moe`. Quantized weights are a
    module, which multiplies by itself."""
    weight = getattr(base, name)
    if isinstance(weight, nn.Module):
        y_SO: Tensor = weight(x_SI, every)
    else:
        outputs = weight.shape[2] if base.is_transposed else weight.shape[1]
        y_SO = x_SI.new_empty(x_SI.shape[0], outputs)
        for expert, first, last in every:
            weight_IO = weight[expert] if base.is_transposed else weight[expert].T
            torch.mm(x_SI[first:last], weight_IO, out=y_SO[first:last])
    if base.has_bias:
        y_SO += getattr(base, f"{name}_bias")[expert_S]
    return y_SO
