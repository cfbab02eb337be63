"""Attention of the compiled step by itself, over a cache of random keys and values."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorry.model.compiled import structs
from lorry.model.kv_cache import LARGEST, Cells, encoded, spread

BLOCK = 16
TILE = 64
"""Keys."""
MOST_TOKENS = 96


@dataclass(frozen=True)
class Options:
    """Beside softmax(q k' / sqrt(D)) v."""

    cap: float = 0.0
    slopes: bool = False
    sinks: bool = False
    window: int = 0


@dataclass(frozen=True)
class Piece:
    """New tokens of one row."""

    row: int
    start: int
    count: int = 1


class CompiledAttention:
    """Rows of `context` tokens, whose blocks lie in the cache in any order, in half precision or in
    bytes. `close` it."""

    def __init__(
        self,
        built: ctypes.CDLL,
        options: Options = Options(),
        *,
        heads: int = 3,
        kv_heads: int = 1,
        size: int = 64,
        rows: int = 3,
        context: int = 300,
        num_threads: int = 1,
        loud: float = 1.0,
        in_bytes: bool = False,
    ) -> None:
        dice = torch.Generator().manual_seed(7)
        blocks = -(-context // BLOCK)
        self._built, self._options = built, options
        self._heads, self._size = heads, size
        order = torch.randperm(rows * blocks, generator=dice)
        self.cells_RL = (order.view(rows, blocks, 1) * BLOCK + torch.arange(BLOCK)).flatten(1).int()
        # What no row has yet is no number: nobody may see it.
        shape = (rows * blocks * BLOCK + 1, kv_heads, size)
        dtype = torch.int8 if in_bytes else torch.float16
        kept = [torch.full(shape, 77 if in_bytes else torch.nan, dtype=dtype) for _ in range(2)]
        scales = [torch.full(shape[:2], torch.nan).half() if in_bytes else None for _ in range(2)]
        self._keys, self._values = (Cells(*both) for both in zip(kept, scales, strict=True))
        self.q_RLQD = torch.randn(rows, context, heads, size, generator=dice) * loud
        self.k_RLHD, self.v_RLHD = (
            torch.randn(rows, context, kv_heads, size, generator=dice).half() for _ in range(2)
        )
        self._slope_Q = torch.rand(heads, generator=dice) / 8
        self._sink_Q = torch.randn(heads, generator=dice) * 3
        self._model = structs.Model(
            hidden=heads * size, heads=heads, kv_heads=kv_heads, head_size=size,
            inner=16, vocab=16, max_rank=8,
        )  # fmt: skip
        attention = structs.Attention(
            scale=size**-0.5,
            cap=options.cap,
            slope_Q=self._slope_Q.data_ptr() if options.slopes else None,
            sink_Q=self._sink_Q.data_ptr() if options.sinks else None,
            window=options.window,
        )
        # Two that answer something else go first, and leave whatever they do behind.
        self._layers = (structs.Layer * 3)(
            *(
                structs.Layer(
                    k_NHD=one.kept_NHD.data_ptr(),
                    v_NHD=other.kept_NHD.data_ptr(),
                    k_scale_NH=None if one.scale_NH is None else one.scale_NH.data_ptr(),
                    v_scale_NH=None if other.scale_NH is None else other.scale_NH.data_ptr(),
                    attention=attention,
                )
                for one, other in (
                    (self._values, self._keys),
                    (self._values, self._keys),
                    (self._keys, self._values),
                )
            )
        )
        self._engine = built.lorry_engine(
            ctypes.byref(self._model), MOST_TOKENS, 8, context, num_threads
        )
        assert self._engine

    def know(self, row: int, end: int) -> None:
        """The cache holds the row's tokens before `end`, and none after."""
        cells_L = self.cells_RL[row].long()
        for cells, all_RLHD in ((self._keys, self.k_RLHD), (self._values, self.v_RLHD)):
            cells.tensors[-1][cells_L] = torch.nan
            cells.write(cells_L[:end], all_RLHD[row, :end])

    def __call__(self, pieces: Sequence[Piece]) -> Tensor:
        """`[T, Q, D]`, of the pieces' tokens in one step."""
        q_TQD = torch.cat([self.q_RLQD[p.row, p.start : p.start + p.count] for p in pieces])
        count = len(q_TQD)
        keys = 2 * self.k_RLHD[0, 0].numel()
        qkv = torch.cat([q_TQD.flatten(1), torch.full((count, keys), torch.nan)], 1)
        for piece in pieces:
            self.know(piece.row, piece.start + piece.count)
        position, row, context, cells = array("i"), array("i"), array("q"), array("i")
        for index, piece in enumerate(pieces):
            position.extend(range(piece.start, piece.start + piece.count))
            row.extend([index] * piece.count)
            context.append(len(cells))
            cells.extend(self.cells_RL[piece.row, : piece.start + piece.count].tolist())
        arguments = structs.StepArguments(
            num_tokens=count,
            position=position.buffer_info()[0],
            row=row.buffer_info()[0],
            context=context.buffer_info()[0],
            cells=cells.buffer_info()[0],
        )
        out_TQD = torch.full_like(q_TQD, torch.nan)
        self._built.lorry_attend(
            self._engine, self._layers, len(self._layers), ctypes.byref(arguments),
            qkv.data_ptr(), out_TQD.data_ptr(),
        )  # fmt: skip
        return out_TQD

    def reference(self, row: int, position: int) -> Tensor:
        """`[Q, D]`, one token by the plain formulas, in fp64."""
        options = self._options
        begin = max(0, position + 1 - options.window) if options.window else 0
        group = self._heads // self.k_RLHD.shape[2]
        seen = slice(begin, position + 1)
        k_LQD = self.k_RLHD[row, seen].double().repeat_interleave(group, 1)
        v_LQD = self.v_RLHD[row, seen].double().repeat_interleave(group, 1)
        scores_QL = torch.einsum("qd,lqd->ql", self.q_RLQD[row, position].double(), k_LQD)
        scores_QL *= self._size**-0.5
        if options.cap:
            scores_QL = options.cap * torch.tanh(scores_QL / options.cap)
        if options.slopes:
            distance_L = position - torch.arange(begin, position + 1)
            scores_QL -= self._slope_Q.double()[:, None] * distance_L
        if options.sinks:
            scores_QL = torch.cat([scores_QL, self._sink_Q.double()[:, None]], 1)
        weights_QL = scores_QL.softmax(1)[:, : position + 1 - begin]
        return torch.einsum("ql,lqd->qd", weights_QL, v_LQD)

    def reference_in_bytes(self, row: int, position: int) -> Tensor:
        """`[Q, D]`, one token by the formulas of decision 0048, in fp64."""
        options = self._options
        begin = max(0, position + 1 - options.window) if options.window else 0
        group = self._heads // self.k_RLHD.shape[2]
        seen = slice(begin, position + 1)
        (k_LHD, k_scale_LH), (v_LHD, v_scale_LH) = (
            (codes.double(), scale.double())
            for codes, scale in (
                encoded(all_RLHD[row, seen]) for all_RLHD in (self.k_RLHD, self.v_RLHD)
            )
        )
        q_QD = spread(self.q_RLQD[row, position].double())
        unit_Q1 = q_QD.abs().amax(1, keepdim=True) / LARGEST
        q_QD = (q_QD / unit_Q1).round() * unit_Q1
        k_LQD = (k_LHD * k_scale_LH[..., None]).repeat_interleave(group, 1)
        scores_QL = torch.einsum("qd,lqd->ql", q_QD, k_LQD) * self._size**-0.5
        if options.cap:
            scores_QL = options.cap * torch.tanh(scores_QL / options.cap)
        if options.slopes:
            distance_L = position - torch.arange(begin, position + 1)
            scores_QL -= self._slope_Q.double()[:, None] * distance_L
        most_Q1 = scores_QL.amax(1, keepdim=True)
        total_Q1 = (scores_QL - most_Q1).exp().sum(1, keepdim=True)
        if options.sinks:
            total_Q1 += (self._sink_Q.double()[:, None] - most_Q1).exp()
        out_QD = torch.zeros_like(q_QD)
        for tile in range(begin // TILE * TILE, position + 1, TILE):
            part = slice(max(0, tile - begin), tile + TILE - begin)
            largest_Q1 = scores_QL[:, part].amax(1, keepdim=True)
            scale_QL = v_scale_LH[part].T.repeat_interleave(group, 0)
            unit_Q1 = scale_QL.amax(1, keepdim=True) / LARGEST
            weights_QL = ((scores_QL[:, part] - largest_Q1).exp() * scale_QL / unit_Q1).round()
            v_LQD = v_LHD[part].repeat_interleave(group, 1)
            mixed_QD = torch.einsum("ql,lqd->qd", weights_QL, v_LQD) * unit_Q1
            out_QD += mixed_QD * (largest_Q1 - most_Q1).exp()
        return spread(out_QD / total_Q1)

    def close(self) -> None:
        self._built.lorry_engine_free(self._engine)
