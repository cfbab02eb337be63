"""What a forward pass leaves for the sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Logits:
    """Of K tokens, over a vocabulary of V."""

    values_KV: Tensor
    """fp32."""
    norm_K: Tensor
    """fp32, the log of the sum of exponentials: value - norm is a log-probability."""
    best_K: Tensor
    """int64, the likeliest token; the first of equals."""

    @staticmethod
    def of(values_KV: Tensor) -> Logits:
        values_KV = values_KV.float()
        return Logits(values_KV, torch.logsumexp(values_KV, -1), values_KV.argmax(-1))

    def __getitem__(self, rows: slice | list[int]) -> Logits:
        return Logits(self.values_KV[rows], self.norm_K[rows], self.best_K[rows])

    def __len__(self) -> int:
        return len(self.values_KV)
