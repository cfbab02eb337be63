"""Attention of a chunk that begins behind cached tokens: what it reads, and the numbers that it
gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorry.core import Batch, Row
from lorry.model import attention
from lorry.model.attention import AttentionStep, attend, attending
from lorry.model.inputs import Chunk, build_inputs
from lorry.model.kv_cache import Cells, KVCache, LayerShape
from lorry.model.sight import Sight

BLOCK_SIZE, LENGTH = 4, 30
HEADS, GROUP, SIZE = 2, 3, 16


@dataclass
class Layer:
    """One layer with random queries, keys and values, read in pieces."""

    sight: Sight
    blocks: Sequence[int]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        dice = torch.Generator().manual_seed(2)
        self.module = nn.Identity()
        self.cache = KVCache(
            {self.module: LayerShape(HEADS, SIZE, SIZE, self.sight)},
            num_blocks=8,
            block_size=BLOCK_SIZE,
            dtype=self.dtype,
            device=torch.device("cpu"),
        )
        self.query, self.key, self.value = (
            torch.randn(1, heads, LENGTH, SIZE, generator=dice)
            for heads in (HEADS * GROUP, HEADS, HEADS)
        )

    def read(self, start: int, stop: int, softcap: float | None = None) -> Tensor:
        """`[T, Q, D]`"""
        inputs = build_inputs(
            Batch((Row("", range(start, stop), start, self.blocks, (), None),)),
            block_size=BLOCK_SIZE,
            dtype=torch.float32,
            device=torch.device("cpu"),
            digest_of=str,
        )
        part = [tensor[:, :, start:stop] for tensor in (self.query, self.key, self.value)]
        with attending(AttentionStep(inputs.attention, self.cache)):
            return attend(self.module, *part, None, softcap=softcap)[0][0]

    def expected(self, start: int, stop: int, softcap: float | None = None) -> Tensor:
        """By the formula, in double precision."""
        key_HLD, value_HLD = (
            x[0, :, :stop].to(self.dtype).double() for x in (self.key, self.value)
        )
        k_QLD, v_QLD = (x.repeat_interleave(GROUP, 0) for x in (key_HLD, value_HLD))
        scores = self.query[0, :, start:stop].double() @ k_QLD.transpose(1, 2) * SIZE**-0.5
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        mask_TL = self.sight.mask(torch.arange(start, stop), stop)
        weights = scores.masked_fill(~mask_TL, float("-inf")).softmax(-1)
        return (weights @ v_QLD).transpose(0, 1).float()


NEIGHBOURS, SCATTERED = range(8), [3, 1, 7, 0, 2, 6, 5, 4]


@pytest.mark.parametrize("cells", [1 << 24, 200, 1], ids=["one mask", "some", "one a token"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sight", [Sight(), Sight(window=5), Sight(chunk=8)], ids=repr)
@pytest.mark.parametrize("blocks", [NEIGHBOURS, SCATTERED], ids=["neighbours", "scattered"])
def test_a_chunk_behind_cached_tokens(
    monkeypatch: pytest.MonkeyPatch,
    blocks: Sequence[int],
    sight: Sight,
    softcap: float | None,
    cells: int,
) -> None:
    monkeypatch.setattr(attention, "MASK_CELLS", cells)
    layer = Layer(sight, blocks)
    for start, stop in ((0, 13), (13, 16), (16, 17), (17, LENGTH)):
        found = layer.read(start, stop, softcap)
        torch.testing.assert_close(found, layer.expected(start, stop, softcap), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_keys_are_neither_copied_nor_expanded(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """They are turned to the type of the queries where the cache has another."""
    layer, seen, weigh = Layer(Sight(), NEIGHBOURS, dtype), list[Tensor](), attention._weigh

    def watched(q_BHGD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, *more: Any) -> Tensor:
        seen.extend((k_BHLD, v_BHLD))
        return weigh(q_BHGD, k_BHLD, v_BHLD, *more)

    monkeypatch.setattr(attention, "_weigh", watched)
    layer.read(0, 13)
    assert not seen, "the first chunk needs no mask"
    found = layer.read(13, LENGTH)
    torch.testing.assert_close(found, layer.expected(13, LENGTH), rtol=0, atol=1e-5)
    kv = layer.cache.layer(layer.module)
    assert [tuple(tensor.shape) for tensor in seen] == [(1, HEADS, LENGTH, SIZE)] * 2
    for tensor, cells in zip(seen, (kv.k_NHD, kv.v_NHD), strict=True):
        assert (tensor.data_ptr() == cells.data_ptr()) == (dtype == torch.float32)


@pytest.mark.parametrize("sight", [Sight(window=5), Sight(chunk=8)], ids=repr)
@pytest.mark.parametrize("blocks", [NEIGHBOURS, SCATTERED], ids=["neighbours", "scattered"])
def test_what_none_of_its_tokens_sees_is_not_read(
    monkeypatch: pytest.MonkeyPatch, sight: Sight, blocks: Sequence[int]
) -> None:
    layer, lengths, read = Layer(sight, blocks), list[int](), Chunk.read

    def watched(chunk: Chunk, cells: Cells, begin: int, dtype: torch.dtype) -> Tensor:
        cells_LHD = read(chunk, cells, begin, dtype)
        lengths.append(len(cells_LHD))
        return cells_LHD

    monkeypatch.setattr(Chunk, "read", watched)
    layer.read(0, 17)
    kv, begin = layer.cache.layer(layer.module), sight.begin(17)
    for position in range(begin):
        cell = blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        kv.k_NHD[cell] = kv.v_NHD[cell] = float("nan")
    found = layer.read(17, LENGTH)
    torch.testing.assert_close(found, layer.expected(17, LENGTH), rtol=0, atol=1e-5)
    assert lengths == [LENGTH - begin] * 2
