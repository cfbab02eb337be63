"""What a layer does, found out from what one forward pass handed from module to module.

Every step from a layer's input to its output is a formula here, and each is compared with the
numbers that were seen. So a layer is described rightly, or not at all, whatever its modules are
called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lorry.model.compiled.description import (
    HeadNorm,
    LayerDescription,
    MixtureDescription,
    NormDescription,
    Rotation,
)
from lorry.model.compiled.formulas import (
    ACTIVATIONS,
    angles_of,
    factor,
    kind_of,
    norm_of,
    rotated,
    same,
    starts_of,
)
from lorry.model.compiled.survey_branches import survey_branches
from lorry.model.compiled.survey_mixture import FoundMixture, mixture_of
from lorry.model.compiled.witness import Attended, LayerRun, ModuleCall, RopeCall, Unknown, flat


@dataclass(frozen=True, slots=True)
class LayerSurvey:
    """A layer, and what has to be the same in all of them."""

    layer: LayerDescription
    """Its `rope` is for the model to say."""
    rope: RopeCall | None
    rotated: int
    rotation: Rotation | None
    activation: str
    gated: bool
    heads: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Queries, keys or values, and where they come from."""

    linear: ModuleCall
    starts: list[int]
    norm: HeadNorm | None = None
    rope: int | None = None
    rotated: int = 0
    rotation: Rotation | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Mlp:
    x_TH: Tensor
    y_TH: Tensor
    """A mixture's too."""
    inner: tuple[ModuleCall, ...]
    down: ModuleCall | None
    activation: str
    gated: bool
    size: int
    mixture: MixtureDescription | None = None


def survey_layer(
    model: nn.Module, run: LayerRun, ropes: Sequence[RopeCall], numbers: Sequence[float]
) -> LayerSurvey:
    """`numbers`: those of the config; a factor is one of them where it can be.

    Raises:
        Unknown: it is none that the compiled step can run.
    """
    if run.x_TH is None or run.y_TH is None or len(run.attended) != 1:
        raise Unknown("its layers do not run one after the other")
    attended = run.attended[0]
    linears = [call for call in run.calls if call.is_linear]
    v = values_of(attended.v_HTD, linears)
    k = turned("keys", attended.k_HTD, run.calls, ropes)
    q = turned("queries", attended.q_QTD, run.calls, ropes)
    if k.scale != 1.0 or v.norm is not None:
        raise Unknown("its keys are scaled")
    if k.rope != q.rope or k.rotated != q.rotated or k.rotation != q.rotation:
        raise Unknown("its keys are rotated otherwise than its queries")
    if len({heads.norm.last for heads in (q, k) if heads.norm}) > 1:
        raise Unknown("its keys are normed otherwise than its queries")
    if q.norm and q.norm.last and q.scale != 1.0:
        raise Unknown("its queries are scaled")
    o = _only(_reading(linears, attended.out_TO), "attention's answer does not go to one linear")
    qkv = _unique(heads.linear for heads in (q, k, v))
    if len(qkv) == 2 or any(not same(call.x, qkv[0].x) for call in qkv):
        raise Unknown("its queries, keys and values are projected in an unknown way")
    mixture = mixture_of(model, run.calls, numbers)
    mlp = _mlp([call for call in linears if call not in (*qkv, o)], mixture)
    heads_at = _heads_at(q, k, v, qkv, attended)
    branch = survey_branches(run, qkv[0], o, mlp.x_TH, mlp.y_TH, numbers)
    return LayerSurvey(
        LayerDescription(
            attention=run.attention,
            qkv=tuple(call.path for call in qkv),
            heads_at=heads_at,
            o=o.path,
            inner=tuple(call.path for call in mlp.inner),
            down=None if mlp.down is None else mlp.down.path,
            inner_size=mlp.size,
            attention_norm=branch.attention_norm,
            after_attention=branch.after_attention,
            mlp_norm=branch.mlp_norm,
            after_mlp=branch.after_mlp,
            q_norm=q.norm,
            k_norm=k.norm,
            rope=None,
            parallel=branch.parallel,
            residuals=branch.residuals,
            attention_scale=attended.scale * q.scale,
            softcap=attended.softcap,
            slopes=attended.slopes,
            sinks=attended.sinks,
            mixture=mlp.mixture,
        ),
        rope=None if q.rope is None else ropes[q.rope],
        rotated=q.rotated,
        rotation=q.rotation,
        activation=mlp.activation,
        gated=mlp.gated,
        heads=len(attended.q_QTD),
        kv_heads=len(attended.k_HTD),
        head_size=attended.q_QTD.shape[2],
    )


def _unique(calls: Iterable[ModuleCall]) -> list[ModuleCall]:
    return list(dict.fromkeys(calls))


def _only(calls: Sequence[ModuleCall], otherwise: str) -> ModuleCall:
    if len(calls) != 1:
        raise Unknown(otherwise)
    return calls[0]


def _reading(calls: Iterable[ModuleCall], x: Tensor) -> list[ModuleCall]:
    return [call for call in calls if same(call.x, x)]


# ---- heads


def values_of(v_HTD: Tensor, linears: Sequence[ModuleCall]) -> Heads:
    for call in linears:
        starts = starts_of(v_HTD, flat(call.y), turned=False)
        if starts is not None:
            return Heads(call, starts)
    raise Unknown("its values are not those of a projection")


def turned(
    what: str, heads_XTD: Tensor, calls: Sequence[ModuleCall], ropes: Sequence[RopeCall]
) -> Heads:
    """Queries or keys, which may be normed and rotated."""
    made = "made"
    for before_XTD, after_XTD, heads in _origins(heads_XTD, calls):
        found = _rotation_of(after_XTD, before_XTD, ropes, heads)
        if found is not None:
            return found
        made = "rotated"
    raise Unknown(f"its {what} are {made} in an unknown way")


def _origins(
    heads_XTD: Tensor, calls: Sequence[ModuleCall]
) -> Iterator[tuple[Tensor, Tensor, Heads]]:
    """Where heads may come from: before they are rotated, and after. A norm without weights of its
    own is a factor of the first token, so that one origin does not exclude the next."""
    linears = [call for call in calls if call.is_linear]
    size = heads_XTD.shape[2]
    for call in linears:
        starts = starts_of(heads_XTD, flat(call.y), turned=True)
        if starts is not None:
            yield cut(flat(call.y), starts, heads_XTD), heads_XTD, Heads(call, starts)
    for norm, x_XTD, y_XTD in _head_norms(calls, heads_XTD):
        starts = starts_of(heads_XTD, _rows(y_XTD), turned=True)
        if starts == list(range(0, len(heads_XTD) * size, size)):
            for call in linears:
                starts = starts_of(x_XTD, flat(call.y), turned=False)
                if starts is not None:
                    yield y_XTD, heads_XTD, Heads(call, starts, norm)
        if same(y_XTD, heads_XTD):
            for call in linears:
                starts = starts_of(x_XTD, flat(call.y), turned=True)
                if starts is not None:
                    last = replace(norm, last=True)
                    yield cut(flat(call.y), starts, x_XTD), x_XTD, Heads(call, starts, last)


def cut(rows_TO: Tensor, starts: Sequence[int], like_XTD: Tensor) -> Tensor:
    size = like_XTD.shape[2]
    return torch.stack([rows_TO[:, start : start + size] for start in starts])


def _rows(heads_XTD: Tensor) -> Tensor:
    return heads_XTD.transpose(0, 1).flatten(1)


def _head_norms(
    calls: Sequence[ModuleCall], like_XTD: Tensor
) -> Iterable[tuple[HeadNorm, Tensor, Tensor]]:
    """Norms that answer with such heads, and what they made of what; the last ones first."""
    heads, tokens, size = like_XTD.shape
    single: list[ModuleCall] = []
    for call in reversed(calls):
        if call.is_linear or call.x.shape != call.y.shape:
            continue
        by_token, by_head = (1, tokens, heads, size), (1, heads, tokens, size)
        if call.y.shape == by_token:
            x_XTD, y_XTD = (part[0].transpose(0, 1) for part in (call.x, call.y))
            norm = norm_of(call.path, call.module, (heads, size))
        elif call.y.shape == by_head:
            x_XTD, y_XTD = call.x[0], call.y[0]
            norm = norm_of(call.path, call.module, (1, size))
        elif flat(call.y).shape == (tokens, heads * size):
            x_XTD, y_XTD = (
                flat(part).view(tokens, heads, size).transpose(0, 1) for part in (call.x, call.y)
            )
            norm = norm_of(call.path, call.module, (heads * size,))
            if norm is not None:
                yield HeadNorm(norm, whole=True), x_XTD, y_XTD
            continue
        elif call.y.shape == (1, 1, tokens, size):
            if single and _parent(single[0]) != _parent(call):
                single = []
            single.insert(0, call)
            if len(single) == heads:
                yield from _norm_for_each(single, size)
            continue
        else:
            continue
        if norm is not None:
            yield HeadNorm(norm, whole=False), x_XTD, y_XTD


def _parent(call: ModuleCall) -> str:
    return call.path.rpartition(".")[0]


def _norm_for_each(
    calls: Sequence[ModuleCall], size: int
) -> Iterable[tuple[HeadNorm, Tensor, Tensor]]:
    norms = [norm_of(call.path, call.module, (1, size)) for call in calls]
    first = norms[0]
    if first is None or any(
        norm is None
        or (norm.centred, norm.epsilon, norm.from_one)
        != (first.centred, first.epsilon, first.from_one)
        for norm in norms
    ):
        return
    paths = tuple(call.path for call in calls)
    norm = NormDescription(paths, first.centred, first.epsilon, first.from_one)
    x_XTD = torch.cat([call.x[0] for call in calls])
    y_XTD = torch.cat([call.y[0] for call in calls])
    yield HeadNorm(norm, whole=False), x_XTD, y_XTD


def _rotation_of(
    heads_XTD: Tensor, plain_XTD: Tensor, ropes: Sequence[RopeCall], found: Heads
) -> Heads | None:
    """How `plain_XTD` became `heads_XTD`; None: in no way that is known."""
    scale = factor(heads_XTD, plain_XTD)
    if scale is not None:
        return Heads(found.linear, found.starts, found.norm, scale=scale)
    for index, rope in enumerate(ropes):
        cos_TA, sin_TA = (angles_of(t, kind_of(rope.cos_TR)) for t in (rope.cos_TR, rope.sin_TR))
        if 2 * cos_TA.shape[1] > plain_XTD.shape[2]:
            continue
        for rotation in ("halves", "pairs"):
            scale = factor(heads_XTD, rotated(plain_XTD, cos_TA, sin_TA, rotation))
            if scale is not None:
                size = 2 * cos_TA.shape[1]
                return Heads(found.linear, found.starts, found.norm, index, size, rotation, scale)
    return None


def _heads_at(
    q: Heads, k: Heads, v: Heads, qkv: Sequence[ModuleCall], attended: Attended
) -> tuple[int, ...] | None:
    """`LayerDescription.heads_at`."""
    ends: dict[ModuleCall, int] = {}
    end = 0
    for call in qkv:
        ends[call] = end
        end += call.y.shape[-1]
    starts = [ends[heads.linear] + start for heads in (q, k, v) for start in heads.starts]
    size = attended.q_QTD.shape[2]
    if size != attended.k_HTD.shape[2] or size != attended.v_HTD.shape[2]:
        raise Unknown("its keys and values are of different sizes")
    if end != len(starts) * size:
        raise Unknown("its projections make more than queries, keys and values")
    return None if starts == list(range(0, end, size)) else tuple(starts)


# ---- the MLP


def _mlp(linears: Sequence[ModuleCall], mixture: FoundMixture | None) -> _Mlp:
    """With what a mixture adds to it, or instead of it."""
    if mixture is None:
        return _plain_mlp(linears)
    linears = [call for call in linears if call.path != mixture.described.router.module]
    gates = [call for call in linears if call.y.shape[-1] == 1]
    linears = [call for call in linears if call not in gates]
    x_TH, described = mixture.x_TH, mixture.described
    if not linears and not gates:
        return _Mlp(x_TH, mixture.y_TH, (), None, mixture.activation, True, 0, described)
    shared = _plain_mlp(linears)
    if len(gates) > 1 or any(not same(x, x_TH) for x in (shared.x_TH, *(g.x for g in gates))):
        raise Unknown("its experts share an MLP in an unknown way")
    if not shared.gated or shared.activation != mixture.activation:
        raise Unknown("its experts have another activation than the MLP beside them")
    gate_T1 = torch.sigmoid(flat(gates[0].y)) if gates else 1.0
    described = replace(described, shared_gate=gates[0].path if gates else None)
    return replace(shared, y_TH=mixture.y_TH + gate_T1 * shared.y_TH, mixture=described)


def _plain_mlp(linears: Sequence[ModuleCall]) -> _Mlp:
    if len(linears) not in (2, 3):
        raise Unknown("its MLP is not of two or three linears")
    *inner, down = linears
    if any(not same(call.x, inner[0].x) for call in inner):
        raise Unknown("the linears of its MLP run in an unknown order")
    x_TH, y_TH = flat(inner[0].x), flat(down.y)
    answers, wanted = [flat(call.y) for call in inner], flat(down.x)
    size = wanted.shape[1]
    for name, activation in ACTIVATIONS.items():
        if len(inner) == 1 and same(activation(answers[0]), wanted):
            return _Mlp(x_TH, y_TH, tuple(inner), down, name, False, size)
        if len(inner) == 1 and answers[0].shape[1] == 2 * size:
            gate, up = answers[0].chunk(2, -1)
            if same(activation(gate) * up, wanted):
                return _Mlp(x_TH, y_TH, tuple(inner), down, name, True, size)
        if len(inner) == 2:
            for first, second in ((0, 1), (1, 0)):
                if same(activation(answers[first]) * answers[second], wanted):
                    pair = (inner[first], inner[second])
                    return _Mlp(x_TH, y_TH, pair, down, name, True, size)
    raise Unknown("its MLP has an activation that is not known")
