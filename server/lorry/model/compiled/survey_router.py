"""How the experts of a mixture are chosen: formulas, each tried on what a router answers.

A vector that is added to scores may be so small that it changes no choice among a few tokens. So
the router is asked about more of them, and where several formulas agree with most of its answers,
the one that agrees with the most is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lorry.model.compiled.description import RouterDescription
from lorry.model.compiled.formulas import factor, same
from lorry.model.compiled.witness import ModuleCall, Unknown, flat
from lorry.model.expert_layouts import holds_experts

ASKED = 256
"""Tokens."""

MISTAKEN = 0.01
"""Of the tokens: two scores may be equal but for a rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What was seen, and what it is compared with."""

    x_TH: Tensor
    index_TK: Tensor
    part_TK: Tensor

    def sorted(self) -> Routed:
        """In the order of the experts: what is added up is the same."""
        index_TK, order_TK = self.index_TK.sort(-1)
        return Routed(self.x_TH, index_TK, self.part_TK.float().gather(1, order_TK))


def router_of(
    model: nn.Module,
    calls: Sequence[ModuleCall],
    experts: str,
    seen: Routed,
    numbers: Sequence[float],
) -> RouterDescription:
    """`experts`: the path of the module with the experts; `numbers`: those of the config.

    Raises:
        Unknown: no formula that is known explains the choice.
    """
    seen = seen.sorted()
    found: list[tuple[int, int, RouterDescription]] = []
    for call in calls:
        weight_EH = getattr(call.module, "weight", None)
        if (
            not isinstance(weight_EH, Tensor)
            or weight_EH.ndim != 2
            or weight_EH.shape[1] != seen.x_TH.shape[1]
            or weight_EH.shape[0] <= int(seen.index_TK.max())
            or not same(call.x, seen.x_TH)
        ):
            continue
        asked = _asked(calls, seen) or seen
        vectors = dict(_vectors(model, (call.path, experts.rpartition(".")[0]), len(weight_EH)))
        score_TE = asked.x_TH @ weight_EH.detach().float().T
        for rank, one in enumerate(_formulas(call, vectors, weight_EH.shape[0], numbers)):
            mistakes = _mistakes(one, score_TE, vectors, asked)
            if mistakes <= MISTAKEN * len(score_TE):
                found += [
                    (mistakes, rank, told)
                    for told in _parts(one, score_TE, vectors, asked, numbers)
                ]
                if not mistakes and found:
                    break
    if not found:
        raise Unknown("its experts are chosen in an unknown way")
    return min(found, key=lambda one: one[:2])[2]


def _asked(calls: Sequence[ModuleCall], seen: Routed) -> Routed | None:
    """The answers of the module that chose, to more tokens, loud and quiet; None where there is no
    such module."""
    generator = torch.Generator().manual_seed(3)
    x_TH = torch.randn(ASKED, seen.x_TH.shape[1], generator=generator)
    x_TH[ASKED // 2 :] *= 0.1
    for call in calls:
        if holds_experts(call.module) or not same(call.x, seen.x_TH):
            continue
        forward, more = call.module.forward, call.inputs[1:]
        try:
            again, other = forward(flat(call.x), *more), forward(x_TH, *more)
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue
        for one, many in zip(_choices(again, seen), _choices(other, seen), strict=False):
            chosen = Routed(seen.x_TH, *one).sorted()
            scale = factor(seen.part_TK, chosen.part_TK)
            if torch.equal(chosen.index_TK, seen.index_TK) and scale is not None:
                more_of = Routed(x_TH, many[0], many[1].float() * scale).sorted()
                return Routed(
                    torch.cat([seen.x_TH, x_TH]),
                    torch.cat([seen.index_TK, more_of.index_TK]),
                    torch.cat([seen.part_TK, more_of.part_TK]),
                )
    return None


def _choices(answer: object, seen: Routed) -> Iterator[tuple[Tensor, Tensor]]:
    """Experts and parts among what a module answers."""
    if not isinstance(answer, tuple):
        return
    wide = [
        part for part in answer
        if isinstance(part, Tensor) and part.ndim == 2 and part.shape[1] == seen.index_TK.shape[1]
    ]  # fmt: skip
    for index_TK, part_TK in product(wide, wide):
        if not index_TK.is_floating_point() and part_TK.is_floating_point():
            yield index_TK, part_TK


def _vectors(model: nn.Module, paths: Sequence[str], count: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors of `count` numbers, not all 0, in these modules and below, by their paths; stacks of
    experts hold none."""
    for path in paths:
        module: Any = model.get_submodule(path)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.numel() == count and bool(tensor.any()):
                yield f"{path}.{name}", tensor.detach().float().flatten()


def _formulas(
    call: ModuleCall, vectors: Mapping[str, Tensor], count: int, numbers: Sequence[float]
) -> Iterator[RouterDescription]:
    """The simple ones first."""
    plain = RouterDescription(call.path)
    whole = sorted({int(n) for n in numbers if 1 <= n < count and n == int(n)})
    groups = [None, *((a, b) for a in whole for b in whole if b < a and count % a == 0)]
    for kept in groups:
        for scoring in ("softmax", "sigmoid"):
            one = replace(plain, scoring=scoring, groups=kept)
            for name in vectors:
                yield replace(one, bias=name)
                yield replace(one, correction=name)
                yield replace(one, correction=name, corrects_scores=True)
            yield one
    own = [v for v in vars(call.module).values() if isinstance(v, float) and v > 0]
    for jitter in dict.fromkeys([*own, *numbers]):
        yield replace(plain, scoring="sparse", tolerance=2 * jitter)


def _mistakes(
    one: RouterDescription, score_TE: Tensor, vectors: Mapping[str, Tensor], asked: Routed
) -> int:
    """Tokens for which other experts are chosen."""
    index_TK = chosen(one, score_TE, vectors, asked.index_TK.shape[1])[0]
    return int((index_TK.sort(-1).values != asked.index_TK).any(-1).sum())


def _parts(
    one: RouterDescription,
    score_TE: Tensor,
    vectors: Mapping[str, Tensor],
    asked: Routed,
    numbers: Sequence[float],
) -> Iterator[RouterDescription]:
    """With what the chosen ones count, where that is known."""
    mine = Routed(asked.x_TH, *chosen(one, score_TE, vectors, asked.index_TK.shape[1])).sorted()
    same_T = (mine.index_TK == asked.index_TK).all(-1)
    mine_TK, seen_TK = mine.part_TK[same_T], asked.part_TK[same_T]
    for normed in (False, True):
        parts_TK = mine_TK / mine_TK.sum(-1, keepdim=True) if normed else mine_TK
        scale = factor(seen_TK, parts_TK, numbers)
        if scale is not None:
            yield replace(one, normed=normed, factor=scale)
            return


def chosen(
    router: RouterDescription, score_TE: Tensor, vectors: Mapping[str, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """`RouterDescription`'s formula: experts and values, `[T, count]` each, before values are
    normed. `score_TE`: without the bias; `vectors`: tensors by their paths."""
    if router.bias is not None:
        score_TE = score_TE + vectors[router.bias]
    if router.scoring == "sparse":
        return _sparsely(score_TE, router.tolerance, count)
    softmax = router.scoring == "softmax"
    value_TE = score_TE.softmax(-1) if softmax else score_TE.sigmoid()
    compared_TE = score_TE if router.corrects_scores else value_TE
    if router.correction is not None:
        compared_TE = compared_TE + vectors[router.correction]
    if router.groups is not None:
        groups, kept = router.groups
        group_TGE = compared_TE.view(len(score_TE), groups, -1)
        sum_TG = group_TGE.topk(min(2, group_TGE.shape[2]), -1).values.sum(-1)
        out_TG = torch.ones_like(sum_TG, dtype=torch.bool)
        out_TG.scatter_(1, sum_TG.topk(kept, -1).indices, value=False)
        compared_TE = group_TGE.masked_fill(out_TG.unsqueeze(-1), -torch.inf).flatten(1)
    index_TK = compared_TE.topk(count, -1).indices
    return index_TK, value_TE.gather(1, index_TK)


def _sparsely(score_TE: Tensor, tolerance: float, count: int) -> tuple[Tensor, Tensor]:
    left_TE, indices, values = score_TE.clone(), [], []
    for _ in range(count):
        most_T1, index_T1 = left_TE.max(-1, keepdim=True)
        far_TE = (most_T1 - score_TE) / score_TE.abs().clamp(min=most_T1) > tolerance
        values.append(left_TE.masked_fill(far_TE, -torch.inf).softmax(-1).gather(1, index_T1))
        indices.append(index_T1)
        left_TE = left_TE.scatter(1, index_T1, -torch.inf)
    return torch.cat(indices, 1), torch.cat(values, 1)
