"""Zeroed arrays."""

from __future__ import annotations

import torch

from lorry_adapters.lora.arrays import LINE, zeros


def test_an_array_is_zero_and_begins_with_a_cache_line() -> None:
    for shape in ((3, 5), (1 << 20, 3, 8)):
        made = zeros(shape, dtype=torch.float16, device=torch.device("cpu"))
        assert made.shape == shape and made.dtype is torch.float16 and made.is_contiguous()
        assert not made.any()
        assert made.data_ptr() % LINE == 0
