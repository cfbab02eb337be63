"""What attention was given, where a model attends by itself: found from what it answered.

Keys and values are seen when they are stored. Queries are what is left of the projections, and
they are turned as the keys are. Then each known way to attend is tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lorry.model.compiled.formulas import angles_of, kind_of, rotated, same
from lorry.model.compiled.survey import cut, turned, values_of
from lorry.model.compiled.witness import Attended, LayerRun, ModuleCall, RopeCall, Unknown, flat


def attended_of(run: LayerRun, ropes: Sequence[RopeCall]) -> Attended:
    """Raises Unknown where no known way to attend gives the answer."""
    if len(run.stored) != 1:
        raise Unknown("its layers do not run one after the other")
    ((k_HTD, v_HTD),) = run.stored
    linears = [call for call in run.calls if call.is_linear]
    v = values_of(v_HTD, linears)
    k = turned("keys", k_HTD, run.calls, ropes)
    for q_QTD in _queries(linears, k.linear, v.linear, [*k.starts, *v.starts], k_HTD):
        if k.rope is not None and k.rotation is not None:
            rope = ropes[k.rope]
            cos_TA, sin_TA = (
                angles_of(t, kind_of(rope.cos_TR)) for t in (rope.cos_TR, rope.sin_TR)
            )
            q_QTD = rotated(q_QTD, cos_TA, sin_TA, k.rotation)
        heads, _, size = q_QTD.shape
        readers = [call for call in linears if flat(call.x).shape[1] == heads * size]
        for slopes in (None, slopes_of(heads)):
            for scale in (size**-0.5, 1.0):
                out_TO = _answer(q_QTD, k_HTD, v_HTD, scale, slopes)
                if any(same(call.x, out_TO) for call in readers):
                    return Attended(q_QTD, k_HTD, v_HTD, out_TO, scale, None, slopes)
    raise Unknown("it attends in an unknown way")


def slopes_of(heads: int) -> tuple[float, ...]:
    """ALiBi's (arXiv:2108.12409, section 3, and their code for other numbers than powers of 2)."""
    most = 2 ** math.ceil(math.log2(heads))
    every = [2.0 ** (-8.0 * (n + 1) / most) for n in range(most)]
    return tuple(every) if most == heads else tuple([*every[1::2], *every[::2]][:heads])


def _queries(
    linears: Sequence[ModuleCall],
    k: ModuleCall,
    v: ModuleCall,
    taken: Sequence[int],
    like_HTD: Tensor,
) -> Iterator[Tensor]:
    """What may be the queries, before they are turned."""
    size = like_HTD.shape[2]
    for call in linears:
        if not same(call.x, k.x):
            continue
        rows_TO = flat(call.y)
        used = set(taken) if call is k and call is v else set()
        if rows_TO.shape[1] % size or (call in (k, v) and not used):
            continue
        starts = [at for at in range(0, rows_TO.shape[1], size) if at not in used]
        if starts and len(starts) % len(like_HTD) == 0:
            yield cut(rows_TO, starts, like_HTD)


def _answer(
    q_QTD: Tensor, k_HTD: Tensor, v_HTD: Tensor, scale: float, slopes: Sequence[float] | None
) -> Tensor:
    """`[T, Q * D]`"""
    group = len(q_QTD) // len(k_HTD)
    k_QTD, v_QTD = k_HTD.repeat_interleave(group, 0), v_HTD.repeat_interleave(group, 0)
    scores_QTL = (q_QTD @ k_QTD.transpose(1, 2)) * scale
    at_T = torch.arange(q_QTD.shape[1])
    distance_TL = at_T[:, None] - at_T
    if slopes is not None:
        scores_QTL = scores_QTL - torch.tensor(slopes)[:, None, None] * distance_TL
    scores_QTL = scores_QTL.masked_fill(distance_TL < 0, -torch.inf)
    return (scores_QTL.softmax(-1) @ v_QTD).transpose(0, 1).flatten(1)
