"""Logits to tokens, row by row as each request asks.

Greedy rows take the arg max that the forward pass leaves. A sampled token is the
inverse of the filtered distribution's cumulative sum at one uniform number, which
depends on the request's seed and the token's position in the answer and on nothing
else: the same request gives the same tokens alone, in any batch, and after a preemption.

Order of the filters: penalties, bias, grammar, temperature, top-k, top-p, min-p,
typical-p; transformers and TGI have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorry.core import Sample, SamplingParams, TokenLogprob
from lorry.model.drawing import Drawing
from lorry.model.logits import Logits


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at `position`: Philox 4x64 with the seed
    as key and the position as counter (Salmon et al., SC 2011)."""
    bits = np.random.Philox(key=seed % 2**64, counter=position)
    return float(np.random.Generator(bits).random())


def sample(
    logits: Logits, samples: Sequence[Sample], selection: Drawing
) -> list[tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
    """One token for each row: (token, its `top_logprobs` likeliest).

    Log-probabilities are the model's own: before temperature, penalties and filters.
    """
    tokens = logits.best_K.tolist()
    for k, s in enumerate(samples):
        moved = _is_moved(s)
        if moved or s.params.temperature != 0.0:
            values_V = logits.values_KV[k]
            tokens[k] = _draw(_adjust(values_V, s) if moved else values_V, s, selection)
    chosen = zip(tokens, logits.logprobs(tokens), samples, strict=True)
    return [(TokenLogprob(t, p), _top(logits, k, s)) for k, (t, p, s) in enumerate(chosen)]


def among(s: Sample, tokens: int) -> Sample:
    """`s`, and none but the first `tokens` of the vocabulary may come: the others do not exist
    for an adapter with tables of its own. The model's log-probabilities stay what they are."""
    words = np.full(-(-tokens // 32), 0xFFFFFFFF, dtype=np.uint32)
    if tokens % 32:
        words[-1] = (1 << tokens % 32) - 1
    if s.allowed is not None:
        theirs = np.asarray(s.allowed, dtype=np.uint32)[: len(words)]
        words = words[: len(theirs)] & theirs
    return replace(s, allowed=words.data)


def logprobs_of(logits: Logits, targets: Sequence[int], top: int = 0) -> tuple[TokenLogprob, ...]:
    """Log-probability of each target under the row of logits that predicts it, and the `top`
    likeliest beside it."""
    if not targets:
        return ()
    found = zip(targets, logits.logprobs(targets), logits.top(top), strict=True)
    return tuple(
        TokenLogprob(t, p, tuple(TokenLogprob(*one) for one in likeliest))
        for t, p, likeliest in found
    )


def _is_moved(s: Sample) -> bool:
    """Whether `_adjust` has anything to do."""
    p = s.params
    return (
        s.allowed is not None
        or bool(p.logit_bias)
        or p.repetition_penalty != 1.0
        or p.frequency_penalty != 0.0
        or p.presence_penalty != 0.0
    )


def _top(logits: Logits, k: int, s: Sample) -> tuple[TokenLogprob, ...]:
    count = s.params.top_logprobs
    return tuple(TokenLogprob(*one) for one in logits[k : k + 1].top(count)[0]) if count else ()


def _adjust(logits_V: Tensor, s: Sample) -> Tensor:
    """Penalties, bias and grammar: what moves the arg max too."""
    p, device = s.params, logits_V.device
    scores_V = logits_V.clone()
    if p.repetition_penalty != 1.0:
        seen_S = _seen(s).to(device)
        had = scores_V[seen_S]
        scores_V[seen_S] = torch.where(
            had > 0, had / p.repetition_penalty, had * p.repetition_penalty
        )
    if s.answer and (p.frequency_penalty or p.presence_penalty):
        ids, counts = torch.unique(torch.tensor(list(s.answer), device=device), return_counts=True)
        scores_V[ids] -= p.frequency_penalty * counts + p.presence_penalty
    for token_id, bias in p.logit_bias:
        scores_V[token_id] += bias
    if s.allowed is not None:
        words = np.asarray(s.allowed, dtype=np.uint32).astype("<u4")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: scores_V.shape[0]].astype(np.bool_)).to(device)
        # The model's vocabulary may be padded past the tokenizer's: those are never allowed.
        scores_V[: allowed.shape[0]].masked_fill_(~allowed, float("-inf"))
        scores_V[allowed.shape[0] :] = float("-inf")
    return scores_V


def _seen(s: Sample) -> Tensor:
    """The tokens of prompt and answer. Some may come twice: each gets one value all the same."""
    if s.seen is None:
        return torch.tensor([*s.prompt, *s.answer])
    # Copied: an array cannot grow while a tensor has its memory.
    known = torch.from_numpy(np.frombuffer(s.seen, dtype=np.int64))
    return torch.cat((known, torch.tensor(s.answer[s.num_seen :], dtype=torch.int64)))


def _draw(scores_V: Tensor, s: Sample, selection: Drawing) -> int:
    p = s.params
    if p.temperature == 0.0:
        return int(scores_V.argmax())
    weights_V = filtered(scores_V / p.temperature, p, selection)
    return selection.draw(weights_V, uniform(p.seed, len(s.answer)))


def filtered(scores_V: Tensor, p: SamplingParams, selection: Drawing) -> Tensor:
    """What top-k, top-p, min-p and typical-p leave of each token's probability, not divided
    by their sum; removed tokens have 0."""
    size = scores_V.shape[0]
    if 0 < p.top_k < size:
        scores_V = _at_least(scores_V, scores_V.topk(p.top_k).values[-1], float("-inf"))
    probs_V = scores_V.softmax(-1)
    if p.top_p < 1.0:
        # Nucleus sampling: arXiv:1904.09751, section 3.1. Those that are less likely than
        # `floor` hold less than what is missing from the mass; 1e-4: no sum of fp32 is exact.
        floor = max(0.0, 1.0 - p.top_p - 1e-4) / size
        probs_V = selection.keep_mass(probs_V, probs_V, p.top_p, floor=floor)
    if p.min_p > 0.0:
        # arXiv:2407.01082: a floor relative to the likeliest.
        probs_V = _at_least(probs_V, p.min_p * probs_V.max(), 0.0)
    if p.typical_p < 1.0:
        # Locally typical sampling: arXiv:2202.00666, section 4.
        probs_V = probs_V / probs_V.sum()
        surprise_V = -probs_V.clamp_min(1e-38).log()
        entropy = (probs_V * surprise_V).sum()
        preference_V = -(surprise_V - entropy).abs()
        # No surprise is greater than that of 1e-38.
        probs_V = selection.keep_mass(probs_V, preference_V, p.typical_p, floor=-200.0)
    return probs_V


def _at_least(values_V: Tensor, least: Tensor, other: float) -> Tensor:
    """`other` for values below `least`."""
    below = float(torch.nextafter(least, torch.full_like(least, float("-inf"))))
    return F.threshold(values_V, below, other)
