"""Copies an adapter's matrices to a GPU while steps run there.

The thread that fetched an adapter copies it, from pinned memory and in its own stream, so that
neither the engine's thread nor the step on the device waits. Between two steps only a copy within
the device's memory remains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lorry_adapters.lora.weights import AdapterWeights, LoraPair


class DeviceUpload:
    """Any thread may call it, several at once."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def __call__(self, weights: AdapterWeights) -> AdapterWeights:
        """Return the adapter with its pairs on the device in the slots' format: in their dtype,
        with alpha / r in B. Returns when the copy is complete."""
        pairs = {
            name: (self._host(pair.a_RI), self._host(pair.b_OR.float() * pair.scaling))
            for name, pair in weights.modules.items()
        }
        held = {
            name: LoraPair(self._room(a_RI), self._room(b_OR), 1.0)
            for name, (a_RI, b_OR) in pairs.items()
        }
        copies = ((held[name], pair) for name, pair in pairs.items())
        if self._stream is None:
            _copy(copies)
        else:
            # The steps' memory is reused for the copy, and something may still use the old
            # contents.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                _copy(copies)
            self._stream.synchronize()
        return replace(weights, modules=held)

    def _host(self, values: Tensor) -> Tensor:
        rounded = values.to(self._dtype)
        return rounded if self._stream is None else rounded.pin_memory()

    def _room(self, values: Tensor) -> Tensor:
        return torch.empty_like(values, device=self._device)


def _copy(copies: Iterator[tuple[LoraPair, tuple[Tensor, Tensor]]]) -> None:
    for there, (a_RI, b_OR) in copies:
        there.a_RI.copy_(a_RI, non_blocking=True)
        there.b_OR.copy_(b_OR, non_blocking=True)
