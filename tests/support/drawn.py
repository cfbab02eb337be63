"""Rows of logits, wishes for tokens, and what the sampler draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorry.core import Sample, SamplingParams, TokenLogprob
from lorry.model import sampler
from lorry.model.drawing import TorchDrawing
from lorry.model.logits import Logits

V = 97
PLAIN = SamplingParams(max_new_tokens=9)
WARM = replace(PLAIN, temperature=1.0)


def logits(rows: int, seed: int = 0, *, spread: float = 3.0, size: int = V) -> Tensor:
    return spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def wish(
    params: SamplingParams,
    prompt: Sequence[int] = (1,),
    answer: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
) -> Sample:
    return Sample(params, prompt, answer, allowed)


Drawn = list[tuple[TokenLogprob, tuple[TokenLogprob, ...]]]


def sample(found: Logits, wishes: Sequence[Sample]) -> Drawn:
    return sampler.sample(found, wishes, TorchDrawing())


def draw(values_KV: Tensor, *wishes: Sample) -> list[int]:
    return [token.token_id for token, _ in sample(Logits.of(values_KV), wishes)]


def filtered(scores_V: Tensor, params: SamplingParams) -> Tensor:
    weights_V = sampler.filtered(scores_V, params, TorchDrawing())
    return weights_V / weights_V.sum()
