"""The delta as two Triton kernels over the step's table: shrink, then expand. For a GPU.

    shrink   h[p] = A[slot] x[token]                 one launch for all pairs
    expand   y[token] += scale * B[slot]' h[p]       one launch for each layer of the table

What a row gets depends on nothing but the row. Tiles, blocks and the places where the long
sum over `in` is cut are constants of the module; the cut sums are stored and added up in
order, and nothing is added atomically. Products are of the slots' type (h is rounded to
it, as PEFT's is), sums are in fp32, a scale is never rounded. Only the rows of A and B
below an adapter's own rank are read.

Letters: T tokens, P pairs, X tiles, S slots, R rank, I in, O out, C cuts of the sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorry_adapters.lora.kernels.precision import dot, interpreted, rounded
from lorry_adapters.lora.kernels.table import TILE, Table, TablePlan
from lorry_adapters.lora.plan import Plan

BLOCK_R = 16
"""Ranks one program shrinks to: the least that a GPU's matrix units take."""
BLOCK_I = 128
BLOCK_O = 128
CUT = 1024
"""The sum over `in` is cut at multiples of this ..."""
MAX_CUTS = 8
"""... but in no more parts than this: expand reads them all."""


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x_TI,
    a_SRI,
    h_CPR,
    tiles_X3,
    token_P,
    rank_S,
    num_in,
    x_T,
    a_S,
    a_R,
    h_C,
    h_P,
    cut,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    tile, block, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(tiles_X3 + 3 * tile)
    first = tl.load(tiles_X3 + 3 * tile + 1)
    stop = tl.load(tiles_X3 + 3 * tile + 2)
    rank = tl.load(rank_S + slot)
    if (first == stop) | (block * BLOCK_R >= rank):
        return
    pairs = first + tl.arange(0, TILE)
    ranks = block * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.load(token_P + pairs, mask=pairs < stop, other=0).to(tl.int64)
    x_rows = x_TI + token[:, None] * x_T
    a_rows = a_SRI + slot.to(tl.int64) * a_S + ranks[None, :] * a_R
    h = tl.zeros((TILE, BLOCK_R), dtype=tl.float32)
    end = tl.minimum(part * cut + cut, num_in)
    for begin in range(part * cut, end, BLOCK_I):
        inner = begin + tl.arange(0, BLOCK_I)
        x = tl.load(
            x_rows + inner[None, :],
            mask=(pairs < stop)[:, None] & (inner < end)[None, :],
            other=0.0,
        )
        a = tl.load(
            a_rows + inner[:, None],
            mask=(inner < end)[:, None] & (ranks < rank)[None, :],
            other=0.0,
        )
        h = dot(x, a, h, INTERPRETED)
    tl.store(
        h_CPR + part * h_C + pairs[:, None] * h_P + ranks[None, :], h, mask=(pairs < stop)[:, None]
    )


# A layer's first tile is 1 or a multiple of 16 by chance: no reason to compile once more.
@triton.jit(do_not_specialize=["first_tile"])  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    y_TO,
    h_CPR,
    b_SRO,
    tiles_X3,
    token_P,
    scale_P,
    rank_S,
    first_tile,
    num_out,
    y_T,
    b_S,
    b_R,
    h_C,
    h_P,
    CUTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    tile, block = first_tile + tl.program_id(0), tl.program_id(1)
    slot = tl.load(tiles_X3 + 3 * tile)
    first = tl.load(tiles_X3 + 3 * tile + 1)
    stop = tl.load(tiles_X3 + 3 * tile + 2)
    rank = tl.load(rank_S + slot)
    if (first == stop) | (rank == 0):
        return
    pairs = first + tl.arange(0, TILE)
    outer = block * BLOCK_O + tl.arange(0, BLOCK_O)
    b_rows = b_SRO + slot.to(tl.int64) * b_S + outer[None, :]
    delta = tl.zeros((TILE, BLOCK_O), dtype=tl.float32)
    for begin in range(0, rank, BLOCK_R):
        ranks = begin + tl.arange(0, BLOCK_R)
        wanted = (pairs < stop)[:, None] & (ranks < rank)[None, :]
        h_rows = h_CPR + pairs[:, None] * h_P + ranks[None, :]
        h = tl.zeros((TILE, BLOCK_R), dtype=tl.float32)
        for part in tl.static_range(CUTS):
            h += tl.load(h_rows + part * h_C, mask=wanted, other=0.0)
        b = tl.load(
            b_rows + ranks[:, None] * b_R,
            mask=(ranks < rank)[:, None] & (outer < num_out)[None, :],
            other=0.0,
        )
        delta = dot(rounded(h, b.dtype, INTERPRETED), b, delta, INTERPRETED)
    token = tl.load(token_P + pairs, mask=pairs < stop, other=0).to(tl.int64)
    scale = tl.load(scale_P + pairs, mask=pairs < stop, other=0.0)
    mine = (pairs < stop)[:, None] & (outer < num_out)[None, :]
    y_rows = y_TO + token[:, None] * y_T + outer[None, :]
    y = tl.load(y_rows, mask=mine, other=0.0)
    summed = y.to(tl.float32) + scale[:, None] * delta
    tl.store(y_rows, rounded(summed, y.dtype, INTERPRETED), mask=mine)


def add_delta(
    y_TO: Tensor,
    x_TI: Tensor,
    a_SRI: Tensor,
    b_SRO: Tensor,
    rank_S: Tensor,
    table: Table,
    *,
    max_rank: int,
) -> None:
    """Adds the table's deltas to `y_TO` in place.

    `rank_S` int32: each slot's rank in this module, 0 where it holds nothing; none is above
    `max_rank`. The last dimension of every matrix is contiguous.
    """
    num_in, num_out = x_TI.shape[1], y_TO.shape[1]
    strides = {y_TO.stride(1), x_TI.stride(1), a_SRI.stride(2), b_SRO.stride(2)}
    if strides != {1}:
        # Not an assertion: the kernel would read and write other rows.
        raise ValueError(f"rows with strides {sorted(strides)}")
    if not table.spans:
        return
    cut, cuts = cut_of(num_in)
    blocks = triton.cdiv(max_rank, BLOCK_R)
    h_CPR = torch.empty(
        cuts, table.num_pairs, blocks * BLOCK_R, dtype=torch.float32, device=x_TI.device
    )
    _shrink[(table.num_tiles, blocks, cuts)](
        x_TI,
        a_SRI,
        h_CPR,
        table.tiles_X3,
        table.token_P,
        rank_S,
        num_in,
        x_TI.stride(0),
        a_SRI.stride(0),
        a_SRI.stride(1),
        h_CPR.stride(0),
        h_CPR.stride(1),
        cut,
        TILE=TILE,
        BLOCK_R=BLOCK_R,
        BLOCK_I=BLOCK_I,
        INTERPRETED=interpreted(),
    )
    for first, stop in table.spans:
        _expand[(stop - first, triton.cdiv(num_out, BLOCK_O))](
            y_TO,
            h_CPR,
            b_SRO,
            table.tiles_X3,
            table.token_P,
            table.scale_P,
            rank_S,
            first,
            num_out,
            y_TO.stride(0),
            b_SRO.stride(0),
            b_SRO.stride(1),
            h_CPR.stride(0),
            h_CPR.stride(1),
            CUTS=cuts,
            TILE=TILE,
            BLOCK_R=BLOCK_R,
            BLOCK_O=BLOCK_O,
            INTERPRETED=interpreted(),
        )


def cut_of(num_in: int) -> tuple[int, int]:
    """(length, number) of the parts of a sum over `num_in`; a module's own, whoever is in
    the batch."""
    per_part = -(-num_in // MAX_CUTS)
    cut = max(CUT, -(-per_part // BLOCK_I) * BLOCK_I)
    return cut, -(-num_in // cut)


def add_planned(
    y_TO: Tensor,
    x_TI: Tensor,
    a_SRI: Tensor,
    b_SRO: Tensor,
    rank_S: Tensor,
    plan: Plan,
    ranks: tuple[int, ...],
) -> None:
    """What a module with slots calls. `ranks`: the numbers of `rank_S`, on the host."""
    assert isinstance(plan, TablePlan) and plan.table is not None
    if plan.concerns(ranks):
        max_rank = a_SRI.shape[1] if plan.recorded else max(ranks)
        add_delta(y_TO, x_TI, a_SRI, b_SRO, rank_S, plan.table, max_rank=max_rank)
