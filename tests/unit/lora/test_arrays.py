"""Zeroed arrays."""

from __future__ import annotations

import sys

import psutil
import torch

from lorry_adapters.lora.arrays import LINE, empty, zeros


def test_an_array_is_zero_and_begins_with_a_cache_line() -> None:
    for shape in ((3, 5), (1 << 20, 3, 8)):
        made = zeros(shape, dtype=torch.float16, device=torch.device("cpu"))
        assert made.shape == shape and made.dtype is torch.float16 and made.is_contiguous()
        assert not made.any()
        assert made.data_ptr() % LINE == 0


def test_a_part_that_is_emptied_is_zero_and_gives_its_pages_back() -> None:
    made = zeros((4, 1 << 20), dtype=torch.float32, device=torch.device("cpu"))
    made += 1
    resident = psutil.Process().memory_info().rss
    empty(made[1:3])
    assert not made[1:3].any() and bool(made[0].all()) and bool(made[3].all())
    if sys.platform == "linux":
        assert resident - psutil.Process().memory_info().rss > 7 << 20
    # Less than a page, and nothing at all.
    empty(made[0, 3:50])
    assert made[0, :3].all() and not made[0, 3:50].any() and made[0, 50:].all()
    empty(made[0, 7:7])
    assert made[0, 50:].all()
    made[1:3] += 2
    assert bool((made[1:3] == 2).all())
