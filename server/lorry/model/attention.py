"""Attention over our cache, called by transformers' own modeling code.

Registered under the name `lorry`. A modeling file hands us the step's new
queries, keys and values, `[1, heads, T, size]`, all sequences packed in one row;
we write keys and values to the cache and let every sequence see its own past.
The step's plan reaches us through a context variable, set by `attending`.

Keys are never expanded to one head for each query head: the G query heads that share a
key head are laid out as G query tokens. A chunk reads from the cache what its tokens see:
in place if its blocks are neighbours, in pieces if its mask would be large.

Letters: T packed tokens, P some of a chunk's, B single rows, L context, Q query heads,
H key heads, G = Q / H, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from lorry.errors import UnsupportedModel
from lorry.model.inputs import AttentionPlan
from lorry.model.kv_cache import KVCache, LayerKV, LayerShape
from lorry.model.sight import EVERYTHING, Masks, Sight

NAME = "lorry"

SURVEY = "lorry_survey"
"""The same function in the very first forward pass, where transformers makes masks for it."""

HARMLESS = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions",
     "output_hidden_states", "cache_position", "return_dict", "position_embeddings",
     "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "num_items_in_batch",
     "logits_to_keep", "layer_idx", "past_key_values", "past_key_value", "labels",
     "sliding_window"}
)  # fmt: skip
"""Keyword arguments that cannot change a causal layer's result here. What is not in
this list and not None would be dropped silently, so it refuses the model instead. How far
a layer sees is known from its mask, see `lorry.model.sight`."""


MASK_CELLS = 1 << 24
"""Of the mask of a part of a chunk: PyTorch makes a number of 4 bytes of each."""


@dataclass(slots=True)
class Recorder:
    """Stands in for the cache in the very first forward pass: notes what layers store, and
    what they see."""

    shapes: dict[nn.Module, LayerShape] = field(default_factory=dict)
    masks: Masks | None = None
    """None: what they see is not asked."""


class SinglesKernel(Protocol):
    """Attention of a step's single rows over the cache."""

    def __call__(
        self, q_BQD: Tensor, kv: LayerKV, *, scale: float, softcap: float | None, sight: Sight
    ) -> Tensor:
        """`[B, Q, D]`, the new keys and values being in the cache already."""
        ...


class Observer(Protocol):
    """Stands in for the cache where somebody looks at what the modules around attention do."""

    def attend(
        self,
        module: nn.Module,
        q_1QTD: Tensor,
        k_1HTD: Tensor,
        v_1HTD: Tensor,
        scale: float,
        softcap: float | None,
        sink_Q: Tensor | None,
    ) -> Tensor:
        """`[1, T, Q, D]`, which the layer goes on with."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionStep:
    plan: AttentionPlan
    cache: KVCache
    singles: SinglesKernel | None = None
    """None: torch's operations, here."""


_current: ContextVar[AttentionStep | Recorder | Observer | None] = ContextVar(
    "lorry_attention_step", default=None
)


@contextmanager
def attending(step: AttentionStep | Recorder | Observer) -> Iterator[None]:
    """Attention layers called inside belong to `step`. Does not nest."""
    assert _current.get() is None, "steps do not nest"
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `[1, Q, T, D]` in, `[1, T, Q, D]` out. `s_aux`: sinks,
    `[Q]`, the score of a token more, which has no value.

    Raises:
        UnsupportedModel: the layer asks for something that this function would drop.
    """
    step = _current.get()
    assert step is not None, "an attention layer ran outside a step"
    for name, argument in kwargs.items():
        if argument is not None and argument is not False and name not in HARMLESS:
            raise UnsupportedModel(
                f"{type(module).__name__} passes {name!r} to attention, which is not served yet"
            )
    if isinstance(step, Recorder):
        sight = EVERYTHING if step.masks is None else step.masks.sight(module, attention_mask)
        step.shapes[module] = LayerShape(
            key.shape[1], key.shape[3], value.shape[3], sight, sinks=s_aux is not None
        )
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(step, AttentionStep):
        return step.attend(module, query, key, value, scale, softcap, s_aux), None
    plan, kv, sight = step.plan, step.cache.layer(module), step.cache.shape(module).sight
    # What a later step will read: whether a prompt is read at once or in pieces is the same.
    k_THD = kv.keys.write(plan.write_T, key[0].transpose(0, 1))
    v_THD = kv.values.write(plan.write_T, value[0].transpose(0, 1))
    q_QTD = query[0]
    out_TQD = q_QTD.new_empty(q_QTD.shape[1], q_QTD.shape[0], value.shape[3])
    if plan.num_singles and step.singles is not None:
        q_BQD = q_QTD[:, : plan.num_singles].transpose(0, 1)
        out_TQD[: plan.num_singles] = step.singles(
            q_BQD, kv, scale=scale, softcap=softcap, sight=sight
        )
    elif plan.num_singles:
        singles = plan.singles(sight)
        k_BLHD = kv.keys.read(singles.context_BL.flatten(), key.dtype)
        v_BLHD = kv.values.read(singles.context_BL.flatten(), value.dtype)
        size = singles.context_BL.shape
        heads = k_BLHD.shape[1]
        # [Q, B, D] -> [B, H, G, D]: query heads of one key head are neighbours.
        q_BHGD = (
            q_QTD[:, : singles.count]
            .transpose(0, 1)
            .reshape(singles.count, heads, -1, q_QTD.shape[2])
        )
        out_BHGD = _weigh(
            q_BHGD,
            k_BLHD.view(*size, heads, -1).transpose(1, 2),
            v_BLHD.view(*size, heads, -1).transpose(1, 2),
            singles.mask_B11L,
            scale,
            softcap,
            None if s_aux is None else s_aux.view(1, heads, -1, 1),
        )
        out_TQD[: singles.count] = out_BHGD.flatten(1, 2)
    for chunk in plan.chunks:
        part = slice(chunk.first, chunk.first + chunk.count)
        if chunk.start == 0:
            begin, k_LHD, v_LHD = 0, k_THD[part], v_THD[part]
        else:
            begin = sight.begin(chunk.start)
            k_LHD = chunk.read(kv.keys, begin, key.dtype)
            v_LHD = chunk.read(kv.values, begin, value.dtype)
        seen = _Seen(k_LHD, v_LHD, begin, sight, s_aux)
        out_TQD[part] = _chunk(q_QTD[:, part], seen, chunk.start, scale, softcap)
    return out_TQD.unsqueeze(0), None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a chunk's tokens see."""

    k_LHD: Tensor
    v_LHD: Tensor
    begin: int
    """Absolute position of the first key."""
    sight: Sight
    sink_Q: Tensor | None


def _chunk(q_QTD: Tensor, seen: _Seen, start: int, scale: float, softcap: float | None) -> Tensor:
    """Several new tokens of one sequence, the first at `start`, against its past: `[T, Q, D]`."""
    (queries, count, _), heads = q_QTD.shape, seen.k_LHD.shape[1]
    end = start + count
    plain = softcap is None and seen.sink_Q is None
    if start == 0 and plain and seen.sight.begin(end - 1) == 0:
        out_1QTD = F.scaled_dot_product_attention(
            q_QTD.unsqueeze(0),
            seen.k_LHD.transpose(0, 1).unsqueeze(0),
            seen.v_LHD.transpose(0, 1).unsqueeze(0),
            is_causal=True,
            scale=scale,
            enable_gqa=heads != queries,
        )
        return out_1QTD[0].transpose(0, 1)
    group = queries // heads
    out_TQD = q_QTD.new_empty(count, queries, seen.v_LHD.shape[2])
    sinks_1HG = None if seen.sink_Q is None else seen.sink_Q.view(1, heads, group)
    piece = max(1, MASK_CELLS // (group * (end - seen.begin)))
    for first in range(start, end, piece):
        last = min(first + piece, end)
        begin = seen.sight.begin(first)
        keys = slice(begin - seen.begin, last - seen.begin)
        q_QPD = q_QTD[:, first - start : last - start]
        positions_P = torch.arange(first, last, device=q_QTD.device)
        mask_PL = seen.sight.mask(positions_P, last)[:, begin:]
        out_1HGD = _weigh(
            q_QPD.reshape(1, heads, group * (last - first), -1),
            seen.k_LHD[keys].transpose(0, 1).unsqueeze(0),
            seen.v_LHD[keys].transpose(0, 1).unsqueeze(0),
            mask_PL.repeat(group, 1)[None, None],
            scale,
            softcap,
            None if sinks_1HG is None else sinks_1HG.repeat_interleave(last - first, 2)[..., None],
        )
        out_QPD = out_1HGD.view(queries, last - first, -1)
        out_TQD[first - start : last - start] = out_QPD.transpose(0, 1)
    return out_TQD


def _weigh(
    q_BHGD: Tensor,
    k_BHLD: Tensor,
    v_BHLD: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(q k' scale) v where `mask` is True. With two things that torch's fused operation does
    not have: Gemma 2's cap on the scores (arXiv:2408.00118, section 2) and `sinks`, which
    broadcast to `[B, H, G, 1]` (arXiv:2309.17453, section 3.3, and GPT-OSS)."""
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(q_BHGD, k_BHLD, v_BHLD, attn_mask=mask, scale=scale)
    scores = torch.matmul(q_BHGD, k_BHLD.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], -1)
    parts = scores.softmax(-1, dtype=torch.float32).to(v_BHLD.dtype)
    return torch.matmul(parts[..., : v_BHLD.shape[2]], v_BHLD)


def register() -> None:
    """Make the names known to transformers. Idempotent.

    A step's own masks are in its plan: for a name without a mask function transformers
    makes none. The survey's name has one, which tells what layers see."""
    AttentionInterface.register(NAME, attend)
    AttentionInterface.register(SURVEY, attend)
    AttentionMaskInterface.register(SURVEY, _mask)


def _mask(**arguments: Any) -> Tensor:
    step = _current.get()
    assert isinstance(step, Recorder) and step.masks is not None, "masks are for the survey"
    return step.masks.make(**arguments)
