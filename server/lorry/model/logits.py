"""What a forward pass leaves for the sampler."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
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

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Of one token a row, in the order of the rows."""
        if self.values_KV.device.type != "cpu":
            index_K1 = torch.tensor(tokens, device=self.values_KV.device).unsqueeze(1)
            return (self.values_KV.gather(1, index_K1).squeeze(1) - self.norm_K).tolist()
        # A decode step has driven everything out of the processor's caches: what counts is
        # how much code is touched, and an indexing operation of numpy or torch is a lot.
        values_KV, norms = self.values_KV.numpy().data, self.norm_K.tolist()
        chosen = enumerate(zip(tokens, norms, strict=True))
        # Rounded to fp32 once: a difference of two fp32 is the same through fp64.
        return array("f", [values_KV[k, token] - norm for k, (token, norm) in chosen]).tolist()

    def top(self, count: int) -> list[list[tuple[int, float]]]:
        """The `count` likeliest tokens of each row, and their log-probabilities."""
        if count == 0:
            return [[] for _ in range(len(self))]
        values_KN, tokens_KN = self.values_KV.topk(min(count, self.values_KV.shape[1]))
        logprobs_KN = values_KN - self.norm_K.unsqueeze(1)
        rows = zip(tokens_KN.tolist(), logprobs_KN.tolist(), strict=True)
        return [list(zip(tokens, logprobs, strict=True)) for tokens, logprobs in rows]

    def __getitem__(self, rows: slice | list[int]) -> Logits:
        return Logits(self.values_KV[rows], self.norm_K[rows], self.best_K[rows])

    def __len__(self) -> int:
        return len(self.values_KV)
