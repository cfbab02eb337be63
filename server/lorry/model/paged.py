"""Attention of single new tokens over the paged cache, as Triton kernels. For a GPU.

Keys and values are read where they lie: block by block through the sequence's own block
table, each once for all the query heads that share a key head, and nothing is gathered or
masked beyond a sequence's end. The context is cut at multiples of `SPAN`; the parts
run beside each other, and a second kernel weighs them together in order. Where a sequence
is cut depends on positions alone, so a row's bits do not depend on its neighbours.

The softmax over a stream of keys is FlashAttention's (arXiv:2205.14135, section 3.1); the
parts and their merging are Flash-Decoding's; a cap on the scores is Gemma 2's
(arXiv:2408.00118, section 2). Not for prompts: those have their own call, see `attention`.

Letters: B rows, Q query heads, H key heads, G = Q / H, D key size, V value size, N cache
cells, W blocks a table has room for, Z parts of the longest context, L keys taken at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from lorry.model.guard import require
from lorry.model.inputs import AttentionPlan
from lorry.model.kv_cache import LayerKV
from lorry.model.sight import Sight
from lorry_adapters.lora.kernels.precision import dot, interpreted, rounded

SPAN = 512
"""Positions of one part."""

GROUP = 16
"""Query heads that share a key head, filled up to at least this: what matrix units take."""

ALL = 2**31 - 1
"""Tokens of a window or chunk that no sequence comes to the end of."""

KEY_BYTES = 16 * 1024
"""Of keys, and of values, that one program holds at a time."""


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def _weigh_part(  # type: ignore[no-untyped-def]
    q_BQD,
    k_NHD,
    v_NHD,
    table_BW,
    length_B,
    sum_BQZV,
    top_BQZ,
    mass_BQZ,
    scale,
    cap,
    window,
    chunk,
    parts,
    q_B,
    q_Q,
    k_N,
    k_H,
    v_N,
    v_H,
    table_B,
    num_q,
    G: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE_D: tl.constexpr,
    WIDE_V: tl.constexpr,
    L: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(length_B + row)
    seen_from = tl.maximum(tl.maximum(length - window, (length - 1) // chunk * chunk), 0)
    end = tl.minimum(part * SPAN + SPAN, length)
    # In steps of L from the part's start, so that the steps too are the row's own.
    begin = tl.maximum(part * SPAN, seen_from // L * L)
    if begin >= end:
        return
    group = tl.arange(0, GROUP)
    query = head * G + group
    key_at, value_at = tl.arange(0, WIDE_D), tl.arange(0, WIDE_V)
    q = tl.load(
        q_BQD + row.to(tl.int64) * q_B + query[:, None] * q_Q + key_at[None, :],
        mask=(group < G)[:, None] & (key_at < D)[None, :],
        other=0.0,
    )
    top = tl.full((GROUP,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((GROUP,), dtype=tl.float32)
    total = tl.zeros((GROUP, WIDE_V), dtype=tl.float32)
    for first in range(begin, end, L):
        position = first + tl.arange(0, L)
        seen = (position >= seen_from) & (position < end)
        block = tl.load(table_BW + row * table_B + position // BLOCK, mask=seen, other=0)
        cell = block.to(tl.int64) * BLOCK + position % BLOCK
        k = tl.load(
            k_NHD + cell[None, :] * k_N + head * k_H + key_at[:, None],
            mask=seen[None, :] & (key_at < D)[:, None],
            other=0.0,
        )
        scores = dot(q, k, tl.zeros((GROUP, L), dtype=tl.float32), INTERPRETED) * scale
        if CAPPED:
            # tanh(x) = 2 sigmoid(2 x) - 1
            scores = (2 * tl.sigmoid(2 * scores / cap) - 1) * cap
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shrink = tl.exp(top - higher)
        weight = tl.exp(scores - higher[:, None])
        v = tl.load(
            v_NHD + cell[:, None] * v_N + head * v_H + value_at[None, :],
            mask=seen[:, None] & (value_at < V)[None, :],
            other=0.0,
        )
        mass = mass * shrink + tl.sum(weight, axis=1)
        weight = rounded(weight, v.dtype, INTERPRETED)
        total = dot(weight, v, total * shrink[:, None], INTERPRETED)
        top = higher
    at = (row.to(tl.int64) * num_q + query) * parts + part
    tl.store(top_BQZ + at, top, mask=group < G)
    tl.store(mass_BQZ + at, mass, mask=group < G)
    tl.store(
        sum_BQZV + at[:, None] * V + value_at[None, :],
        total,
        mask=(group < G)[:, None] & (value_at < V)[None, :],
    )


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def _merge_parts(  # type: ignore[no-untyped-def]
    out_BQV,
    sum_BQZV,
    top_BQZ,
    mass_BQZ,
    length_B,
    window,
    chunk,
    parts,
    num_q,
    V: tl.constexpr,
    SPAN: tl.constexpr,
    WIDE_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row, query = tl.program_id(0), tl.program_id(1)
    length = tl.load(length_B + row)
    seen_from = tl.maximum(tl.maximum(length - window, (length - 1) // chunk * chunk), 0)
    first = seen_from // SPAN
    stop = tl.cdiv(length, SPAN)
    value_at = tl.arange(0, WIDE_V)
    at = (row.to(tl.int64) * num_q + query) * parts
    top = float("-inf")
    for part in range(first, stop):
        top = tl.maximum(top, tl.load(top_BQZ + at + part))
    mass = 0.0
    total = tl.zeros((WIDE_V,), dtype=tl.float32)
    for part in range(first, stop):
        weight = tl.exp(tl.load(top_BQZ + at + part) - top)
        mass += weight * tl.load(mass_BQZ + at + part)
        total += weight * tl.load(
            sum_BQZV + (at + part) * V + value_at, mask=value_at < V, other=0.0
        )
    # A row that fills up a batch has no context: it gets zeros, not 0 / 0.
    answer = tl.where(length > 0, total / tl.where(length > 0, mass, 1.0), 0.0)
    place = out_BQV + (row.to(tl.int64) * num_q + query) * V + value_at
    tl.store(place, rounded(answer, out_BQV.dtype.element_ty, INTERPRETED), mask=value_at < V)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The single rows' contexts, in device memory."""

    table_BW: Tensor
    """int32, blocks in order; what lies beyond a context's end is never read."""
    length_B: Tensor
    """int32, tokens of each context, the new one included; 0 for a row that only fills up."""
    block_size: int
    parts: int
    """At least as many as the longest context has."""


def parts_of(length: int) -> int:
    """Parts that a context of `length` tokens is cut in."""
    return max(1, -(-length // SPAN))


def tables_of(plan: AttentionPlan) -> Tables:
    """The tables of a step's single rows, on its device."""
    rows = plan.rows[: plan.num_singles]
    lengths = [row.start + 1 for row in rows]
    size = plan.block_size
    table = np.zeros((len(rows), -(-max(lengths) // size)), dtype=np.int32)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        count = -(-length // size)
        table[place, :count] = row.blocks[:count]
    return Tables(
        torch.from_numpy(table).to(plan.device),
        torch.tensor(lengths, dtype=torch.int32, device=plan.device),
        size,
        parts_of(max(lengths)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PagedSingles:
    """`attention.SinglesKernel` for the rows of `tables`."""

    tables: Tables

    def __call__(
        self, q_BQD: Tensor, kv: LayerKV, *, scale: float, softcap: float | None, sight: Sight
    ) -> Tensor:
        """`[B, Q, V]`: every row's new token over its own context, itself included."""
        tables = self.tables
        num_rows, num_q, size = q_BQD.shape
        num_heads, value_size = kv.v_NHD.shape[1:]
        strides = {q_BQD.stride(2), kv.k_NHD.stride(2), kv.v_NHD.stride(2)}
        require(strides == {1}, f"heads with strides {strides}")
        out_BQV = q_BQD.new_empty(num_rows, num_q, value_size)
        shape = (num_rows, num_q, tables.parts)
        top_BQZ = torch.empty(shape, dtype=torch.float32, device=q_BQD.device)
        mass_BQZ = torch.empty_like(top_BQZ)
        sum_BQZV = torch.empty((*shape, value_size), dtype=torch.float32, device=q_BQD.device)
        window = ALL if sight.window is None else sight.window
        chunk = ALL if sight.chunk is None else sight.chunk
        wide_d, wide_v = (max(16, triton.next_power_of_2(n)) for n in (size, value_size))
        group = num_q // num_heads
        _weigh_part[(num_rows, num_heads, tables.parts)](
            q_BQD,
            kv.k_NHD,
            kv.v_NHD,
            tables.table_BW,
            tables.length_B,
            sum_BQZV,
            top_BQZ,
            mass_BQZ,
            scale,
            1.0 if softcap is None else softcap,
            window,
            chunk,
            tables.parts,
            q_BQD.stride(0),
            q_BQD.stride(1),
            kv.k_NHD.stride(0),
            kv.k_NHD.stride(1),
            kv.v_NHD.stride(0),
            kv.v_NHD.stride(1),
            tables.table_BW.stride(0),
            num_q,
            G=group,
            D=size,
            V=value_size,
            CAPPED=softcap is not None,
            BLOCK=tables.block_size,
            SPAN=SPAN,
            GROUP=max(GROUP, triton.next_power_of_2(group)),
            WIDE_D=wide_d,
            WIDE_V=wide_v,
            L=keys_at_once(max(wide_d, wide_v) * q_BQD.element_size()),
            INTERPRETED=interpreted(),
        )
        _merge_parts[(num_rows, num_q)](
            out_BQV,
            sum_BQZV,
            top_BQZ,
            mass_BQZ,
            tables.length_B,
            window,
            chunk,
            tables.parts,
            num_q,
            V=value_size,
            SPAN=SPAN,
            WIDE_V=wide_v,
            INTERPRETED=interpreted(),
        )
        return out_BQV


def keys_at_once(key_bytes: int) -> int:
    """So many keys of `key_bytes` bytes each fit in `KEY_BYTES`; 16, 32 or 64."""
    return min(64, max(16, KEY_BYTES // key_bytes))
