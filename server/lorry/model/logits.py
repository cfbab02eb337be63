"""What a forward pass leaves for the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Of one token a row, in the order of the rows."""
        if self.values_KV.device.type == "cpu":
            # A decode step pays for every operation of torch with some microseconds and a
            # chance that another thread takes the interpreter: numpy asks for neither.
            values_KV, rows_K = self.values_KV.numpy(), np.arange(len(tokens))
            found: list[float] = (values_KV[rows_K, tokens] - self.norm_K.numpy()).tolist()
            return found
        index_K1 = torch.tensor(tokens, device=self.values_KV.device).unsqueeze(1)
        return (self.values_KV.gather(1, index_K1).squeeze(1) - self.norm_K).tolist()

    def __getitem__(self, rows: slice | list[int]) -> Logits:
        return Logits(self.values_KV[rows], self.norm_K[rows], self.best_K[rows])

    def __len__(self) -> int:
        return len(self.values_KV)
