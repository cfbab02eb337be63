"""Memory for keys and values: as much as was said, and zero where nobody has written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorry.core import BlockCopy
from lorry.model.kv_cache import KVCache, LayerShape, bytes_per_token
from lorry.model.sight import Sight

WIDE, NARROW = nn.Identity(), nn.Identity()
SHAPES = {WIDE: LayerShape(4, 16, 8), NARROW: LayerShape(1, 32, 32, sight=Sight(window=8))}


def cache(dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(SHAPES, num_blocks=3, block_size=5, dtype=dtype, device=torch.device("cpu"))


def test_every_layer_has_its_own_cells_of_its_own_size() -> None:
    made = cache()
    wide, narrow = made.layer(WIDE), made.layer(NARROW)
    # Fifteen in blocks, and one that is nobody's.
    assert made.scratch_cell == 15
    assert wide.k_NHD.shape == (16, 4, 16)
    assert wide.v_NHD.shape == (16, 4, 8)
    assert narrow.k_NHD.shape == narrow.v_NHD.shape == (16, 1, 32)
    wide.k_NHD.fill_(1)
    assert not narrow.k_NHD.any() and not wide.v_NHD.any()
    assert made.shape(NARROW).sight == Sight(window=8)


def test_what_nobody_has_written_is_zero() -> None:
    for module in SHAPES:
        kv = cache().layer(module)
        assert not kv.k_NHD.any()
        assert not kv.v_NHD.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_price_times_the_tokens_is_all_of_it(dtype: torch.dtype) -> None:
    price = (4 * (16 + 8) + 1 * (32 + 32)) * dtype.itemsize
    assert bytes_per_token(SHAPES, dtype) == price
    assert cache(dtype).nbytes == price * 16


def test_copies_read_all_before_they_write() -> None:
    made = cache()
    for layer in made.layers:
        for cells_NHD in (layer.k_NHD, layer.v_NHD):
            cells_NHD[:] = torch.arange(16.0)[:, None, None]
    # The second block is read by the one and written by the other.
    made.copy([BlockCopy(source=0, target=1, count=3), BlockCopy(source=1, target=2, count=4)])
    expected = [*range(5), 0, 1, 2, 8, 9, 5, 6, 7, 8, 14, 15]
    for layer in made.layers:
        for cells_NHD in (layer.k_NHD, layer.v_NHD):
            assert cells_NHD[:, 0, 0].tolist() == expected
            assert torch.equal(cells_NHD, cells_NHD[:, :1, :1].expand_as(cells_NHD))
