"""Keys and values of every token in the cache, a pair of arrays a layer.

Token-major, `[N, H, D]`: N tokens = blocks x block size, so that writing a step's
tokens is one scatter, and a sequence's blocks are read by one gather of rows.

In bytes (`torch.int8`), a head is turned by a Hadamard matrix first (`spread`), so that no number
sticks out. Each token and head has a scale in half precision, rounded up: the largest number is 127
times that. What is not a number, or too large for its scale, makes the whole head no
number.

Letters: N cached tokens, M some of them, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lorry.core import BlockCopy
from lorry.model.sight import EVERYTHING, Sight
from lorry_adapters.lora.arrays import zeros


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention module stores a token."""

    heads: int
    key_size: int
    value_size: int
    sight: Sight = EVERYTHING
    """Which tokens it sees."""
    sinks: bool = False
    """True if its heads have attention sinks."""


Layer: TypeAlias = nn.Module | int
"""Who asks: an attention module, or where only transformers' own cache is called, a number."""

Shapes: TypeAlias = dict[Layer, LayerShape]


LARGEST = 127
"""Of a head's bytes."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Keys or values of a layer."""

    kept_NHD: Tensor
    scale_NH: Tensor | None = None
    """float16, of bytes."""

    def write(self, where_M: Tensor, new_MHD: Tensor) -> Tensor:
        """Return what is read there from now on, in the type of `new_MHD`."""
        if self.scale_NH is None:
            kept_MHD = new_MHD.to(self.kept_NHD.dtype)
            self.kept_NHD.index_copy_(0, where_M, kept_MHD)
            return kept_MHD.to(new_MHD.dtype)
        codes_MHD, scale_MH = encoded(new_MHD)
        self.kept_NHD.index_copy_(0, where_M, codes_MHD)
        self.scale_NH.index_copy_(0, where_M, scale_MH)
        return _decoded(codes_MHD, scale_MH, new_MHD.dtype)

    def read(self, where_M: Tensor, dtype: torch.dtype) -> Tensor:
        """`[M, H, D]`"""
        kept_MHD = self.kept_NHD.index_select(0, where_M)
        if self.scale_NH is None:
            return kept_MHD.to(dtype)
        return _decoded(kept_MHD, self.scale_NH.index_select(0, where_M), dtype)

    def part(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """`[M, H, D]`, neighbouring cells: a view where they are of this type."""
        kept_MHD = self.kept_NHD[first:last]
        if self.scale_NH is None:
            return kept_MHD.to(dtype)
        return _decoded(kept_MHD, self.scale_NH[first:last], dtype)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.kept_NHD] if self.scale_NH is None else [self.kept_NHD, self.scale_NH]


def encoded(x_MHD: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes, and what one is worth: `keep_bytes` in `attention8.h`."""
    x_MHD = spread(x_MHD.float())
    worth_MH = x_MHD.abs().amax(-1) / LARGEST
    half_MH = worth_MH.half()
    # The next number of half precision, unless this one is enough.
    above_MH = (half_MH.view(torch.int16) + 1).view(torch.float16)
    scale_MH = torch.where((half_MH.float() < worth_MH) | (half_MH == 0), above_MH, half_MH)
    scale_MH = torch.where(scale_MH.isfinite(), scale_MH, torch.nan)
    codes_MHD = x_MHD * (1 / scale_MH.float()).unsqueeze(-1)
    return codes_MHD.round().nan_to_num(0).to(torch.int8), scale_MH


def _decoded(codes_MHD: Tensor, scale_MH: Tensor, dtype: torch.dtype) -> Tensor:
    return spread(codes_MHD.float() * scale_MH.float().unsqueeze(-1)).to(dtype)


def spread(x_MHD: Tensor) -> Tensor:
    """x H, where H is the orthonormal Hadamard matrix of the largest power of two that divides D,
    along the diagonal. It undoes itself."""
    size = x_MHD.shape[-1]
    block = size & -size
    step = 1
    y = x_MHD
    while step < block:
        a, b = y.reshape(-1, block // (2 * step), 2, step).unbind(2)
        y = torch.stack((a + b, a - b), 2)
        step *= 2
    turned: Tensor = y.reshape(x_MHD.shape) * block**-0.5
    return turned


@dataclass(frozen=True, slots=True)
class LayerKV:
    k_NHD: Tensor
    v_NHD: Tensor
    k_scale_NH: Tensor | None = None
    v_scale_NH: Tensor | None = None

    @property
    def keys(self) -> Cells:
        return Cells(self.k_NHD, self.k_scale_NH)

    @property
    def values(self) -> Cells:
        return Cells(self.v_NHD, self.v_scale_NH)

    @property
    def tensors(self) -> list[Tensor]:
        """`[N, ..]` each, all that is kept of a token."""
        return [*self.keys.tensors, *self.values.tensors]


class KVCache:
    """Reserved once, at start-up; who owns which block is the scheduler's business."""

    def __init__(
        self,
        shapes: Shapes,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        self.num_blocks = num_blocks
        self.scratch_cell = num_blocks * block_size
        """A cache row of no block: where rows that fill up a recorded step write."""
        tokens = self.scratch_cell + 1

        # Zeroed: a padded row reads cells that nobody has written, and 0 x NaN is NaN.
        def cells(heads: int, size: int) -> Tensor:
            return zeros((tokens, heads, size), dtype=dtype, device=device)

        def scales(heads: int) -> Tensor | None:
            is_scaled = dtype is torch.int8
            return zeros((tokens, heads), dtype=torch.float16, device=device) if is_scaled else None

        self.shapes = shapes
        self._layers = {
            layer: LayerKV(
                cells(s.heads, s.key_size),
                cells(s.heads, s.value_size),
                scales(s.heads),
                scales(s.heads),
            )
            for layer, s in shapes.items()
        }

    def layer(self, layer: Layer) -> LayerKV:
        return self._layers[layer]

    @property
    def layers(self) -> list[LayerKV]:
        """In the order of the shapes."""
        return list(self._layers.values())

    def shape(self, layer: Layer) -> LayerShape:
        return self.shapes[layer]

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy the first tokens of blocks, in every layer: all are read, then all are written."""
        from_M, to_M = (
            torch.tensor(
                [block * self.block_size + at for block, count in blocks for at in range(count)],
                device=self.device,
            )
            for blocks in (
                [(one.source, one.count) for one in copies],
                [(one.target, one.count) for one in copies],
            )
        )
        for kv in self.layers:
            for kept in kv.tensors:
                kept.index_copy_(0, to_M, kept.index_select(0, from_M))

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kv in self._layers.values() for kept in kv.tensors)


def step_of(dtype: torch.dtype) -> float:
    """Of a cache's numbers, beside 1."""
    return torch.finfo(dtype).eps if dtype.is_floating_point else 1 / LARGEST


def bytes_per_token(shapes: Shapes, dtype: torch.dtype) -> int:
    """Cache bytes of one token, all layers."""
    scales = 2 * torch.float16.itemsize if dtype is torch.int8 else 0
    return sum(
        s.heads * ((s.key_size + s.value_size) * dtype.itemsize + scales) for s in shapes.values()
    )
