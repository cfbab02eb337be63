"""Memory for keys and values: as much as was said, and zero where nobody has written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorry.core import BlockCopy
from lorry.model.kv_cache import KVCache, LayerShape, bytes_per_token, spread
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


def test_bytes_have_a_scale_for_each_token_and_head() -> None:
    price = 4 * (16 + 8) + 1 * (32 + 32) + 2 * 2 * (4 + 1)
    assert bytes_per_token(SHAPES, torch.int8) == price
    assert cache(torch.int8).nbytes == price * 16
    # Half of float16's price, and the scales.
    assert price < 0.57 * bytes_per_token(SHAPES, torch.float16)


def test_bytes_are_read_within_half_a_step() -> None:
    keys = cache(torch.int8).layer(WIDE).keys
    where_M = torch.tensor([7, 2, 14])
    new_MHD = torch.randn(3, 4, 16) * torch.logspace(-6, 4, 12).view(3, 4, 1)
    read_MHD = keys.write(where_M, new_MHD)
    assert keys.read(where_M, torch.float32).equal(read_MHD)
    assert keys.part(14, 15, torch.float32)[0].equal(read_MHD[2])
    step_MH1 = spread(new_MHD).abs().amax(-1, keepdim=True) / 127
    # The scale is rounded as well.
    assert (spread(read_MHD - new_MHD).abs() <= 0.501 * step_MH1 + 2**-25).all()
    assert not keys.read(torch.tensor([0, 3]), torch.float32).any()


@pytest.mark.parametrize("size", [16, 48, 64, 80, 256])
def test_spreading_shares_out_what_sticks_out(size: int) -> None:
    x_MHD = torch.randn(5, 2, size)
    assert torch.allclose(spread(spread(x_MHD)), x_MHD, atol=1e-5)
    assert torch.allclose(spread(x_MHD).norm(dim=-1), x_MHD.norm(dim=-1), rtol=1e-5)
    x_MHD[:, :, 3] = 1000
    block = size & -size
    assert spread(x_MHD).abs().max() < 1100 * block**-0.5


def test_a_head_with_what_is_no_number_or_too_large_is_none() -> None:
    values = cache(torch.int8).layer(NARROW).values
    new_MHD = torch.ones(4, 1, 32)
    new_MHD[0, 0, 3], new_MHD[1, 0, 4], new_MHD[2, 0, 5] = torch.nan, torch.inf, 1e8
    read_MHD = values.write(torch.arange(4), new_MHD)
    assert read_MHD[:3].isnan().all() and read_MHD[3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_copies_copy_what_is_read(dtype: torch.dtype) -> None:
    made = cache(dtype)
    for layer in made.layers:
        for cells in (layer.keys, layer.values):
            cells.write(torch.arange(16), torch.randn(16, *cells.kept_NHD.shape[1:]))
    before = [layer.keys.read(torch.arange(3), torch.float32) for layer in made.layers]
    made.copy([BlockCopy(source=0, target=1, count=3)])
    for layer, read_MHD in zip(made.layers, before, strict=True):
        assert layer.keys.part(5, 8, torch.float32).equal(read_MHD)


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
