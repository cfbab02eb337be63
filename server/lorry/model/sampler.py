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

import numpy as np
import torch
from torch import Tensor

from lorry.core import Sample, SamplingParams, TokenLogprob
from lorry.model.logits import Logits


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at `position`: Philox 4x64 with the seed
    as key and the position as counter (Salmon et al., SC 2011)."""
    bits = np.random.Philox(key=seed % 2**64, counter=position)
    return float(np.random.Generator(bits).random())


def sample(
    logits: Logits, samples: Sequence[Sample]
) -> list[tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
    """One token for each row: (token, its `top_logprobs` likeliest).

    Log-probabilities are the model's own: before temperature, penalties and filters.
    """
    tokens = logits.best_K.tolist()
    for k, s in enumerate(samples):
        if not _is_plain(s):
            tokens[k] = _draw(_adjust(logits.values_KV[k], s), s)
    chosen = zip(tokens, logits.logprobs(tokens), samples, strict=True)
    return [(TokenLogprob(t, p), _top(logits, k, s)) for k, (t, p, s) in enumerate(chosen)]


def logprobs_of(logits: Logits, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """Log-probability of each target under the row of logits that predicts it."""
    if not targets:
        return ()
    found = zip(targets, logits.logprobs(targets), strict=True)
    return tuple(TokenLogprob(t, p) for t, p in found)


def _is_plain(s: Sample) -> bool:
    """Greedy with nothing that moves the arg max."""
    p = s.params
    return (
        p.temperature == 0.0
        and s.allowed is None
        and not p.logit_bias
        and p.repetition_penalty == 1.0
        and p.frequency_penalty == 0.0
        and p.presence_penalty == 0.0
    )


def _top(logits: Logits, k: int, s: Sample) -> tuple[TokenLogprob, ...]:
    count = s.params.top_logprobs
    if count == 0:
        return ()
    logits_V = logits.values_KV[k]
    values, ids = logits_V.topk(min(count, logits_V.shape[0]))
    logprobs = (values - logits.norm_K[k]).tolist()
    return tuple(TokenLogprob(t, p) for t, p in zip(ids.tolist(), logprobs, strict=True))


def _adjust(logits_V: Tensor, s: Sample) -> Tensor:
    """Penalties, bias and grammar: what moves the arg max too."""
    p, device = s.params, logits_V.device
    scores_V = logits_V.clone()
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*s.prompt, *s.answer}), device=device)
        had = scores_V[seen]
        scores_V[seen] = torch.where(
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


def _draw(scores_V: Tensor, s: Sample) -> int:
    p = s.params
    if p.temperature == 0.0:
        return int(scores_V.argmax())
    probs_V = filtered(scores_V / p.temperature, p).double()
    cumulative_V = probs_V.cumsum(0)
    at = uniform(p.seed, len(s.answer)) * float(cumulative_V[-1])
    # right=True: a token of probability 0 is never the first to exceed `at`.
    drawn = int(torch.searchsorted(cumulative_V, at, right=True))
    if drawn >= probs_V.shape[0]:
        drawn = int(probs_V.nonzero()[-1])
    return drawn


def filtered(scores_V: Tensor, p: SamplingParams) -> Tensor:
    """The distribution after top-k, top-p, min-p and typical-p; removed tokens have 0."""
    if 0 < p.top_k < scores_V.shape[0]:
        floor = scores_V.topk(p.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < floor, float("-inf"))
    probs_V = scores_V.softmax(-1)
    if p.top_p < 1.0:
        # Nucleus sampling: arXiv:1904.09751, section 3.1.
        probs_V = _keep_mass(probs_V, probs_V, p.top_p)
    if p.min_p > 0.0:
        # arXiv:2407.01082: a floor relative to the likeliest.
        probs_V = probs_V.masked_fill(probs_V < p.min_p * probs_V.max(), 0.0)
    if p.typical_p < 1.0:
        # Locally typical sampling: arXiv:2202.00666, section 4.
        probs_V = probs_V / probs_V.sum()
        surprise_V = -probs_V.clamp_min(1e-38).log()
        entropy = (probs_V * surprise_V).sum()
        probs_V = _keep_mass(probs_V, -(surprise_V - entropy).abs(), p.typical_p)
    return probs_V / probs_V.sum()


def _keep_mass(probs_V: Tensor, preference_V: Tensor, mass: float) -> Tensor:
    """The most preferred tokens whose probabilities, 1 in all, first reach `mass`; at least
    one."""
    order_V = preference_V.masked_fill(probs_V == 0, float("-inf")).argsort(descending=True)
    before_V = probs_V[order_V].cumsum(0) - probs_V[order_V]
    dropped_V = order_V[before_V >= mass]
    kept_V = probs_V.clone()
    kept_V[dropped_V] = 0.0
    return kept_V
