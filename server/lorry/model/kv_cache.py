"""Keys and values of every token in the cache, a pair of arrays a layer.

Token-major, `[N, H, D]`: N tokens = blocks x block size, so that writing a step's
tokens is one scatter, and a sequence's blocks are read by one gather of rows.

Letters: N cached tokens, H key/value heads, D head size.
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


@dataclass(frozen=True, slots=True)
class LayerKV:
    k_NHD: Tensor
    v_NHD: Tensor


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

        self.shapes = shapes
        self._layers = {
            layer: LayerKV(cells(s.heads, s.key_size), cells(s.heads, s.value_size))
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
            for cells_NHD in (kv.k_NHD, kv.v_NHD):
                cells_NHD.index_copy_(0, to_M, cells_NHD.index_select(0, from_M))

    @property
    def nbytes(self) -> int:
        return sum(kv.k_NHD.nbytes + kv.v_NHD.nbytes for kv in self._layers.values())


def bytes_per_token(shapes: Shapes, dtype: torch.dtype) -> int:
    """Cache bytes of one token, all layers."""
    return sum(s.heads * (s.key_size + s.value_size) for s in shapes.values()) * dtype.itemsize
