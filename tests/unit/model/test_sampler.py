"""Logits to tokens: against transformers' own processors and the penalties' formulas."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lorry.core import SamplingParams
from lorry.model.sampler import _adjust, among, uniform
from support.drawn import PLAIN, WARM, V, draw, filtered, logits, wish

# ---- greedy


def test_greedy_is_the_arg_max_whatever_the_filters_say() -> None:
    values_KV = logits(20)
    params = replace(PLAIN, top_k=3, top_p=0.2, min_p=0.5, typical_p=0.3, seed=5)
    assert draw(values_KV, *[wish(params)] * 20) == values_KV.argmax(-1).tolist()


def test_the_first_of_equals() -> None:
    values_KV = torch.zeros(1, V)
    values_KV[0, [7, 3, 90]] = 5
    assert draw(values_KV, wish(PLAIN)) == [3]


@pytest.mark.parametrize("known", [1, 31, 32, 33, 64, V - 1])
@pytest.mark.parametrize("grammar", [None, 2, 4], ids=["free", "a short mask", "a long mask"])
def test_tokens_that_an_adapter_has_not_never_come(known: int, grammar: int | None) -> None:
    allowed = None if grammar is None else [0x55555555] * grammar
    values_KV = logits(40)
    values_KV[:, known:] += 50
    for params in (PLAIN, replace(WARM, temperature=50.0), replace(WARM, logit_bias=((96, 90.0),))):
        wishes = [among(wish(replace(params, seed=k), (1,), (), allowed), known) for k in range(40)]
        tokens = draw(values_KV, *wishes)
        assert max(tokens) < known
        assert allowed is None or all(token % 2 == 0 and token < 32 * grammar for token in tokens)


# ---- the filters, one by one and all together


FILTERS = [
    *[(replace(WARM, top_k=k), TopKLogitsWarper(k)) for k in (1, 5, V - 1)],
    *[(replace(WARM, top_p=p), TopPLogitsWarper(p)) for p in (1e-6, 0.3, 0.9, 0.999)],
    *[(replace(WARM, min_p=p), MinPLogitsWarper(p)) for p in (0.01, 0.1, 0.7, 1.0)],
    *[(replace(WARM, typical_p=p), TypicalLogitsWarper(p)) for p in (1e-6, 0.2, 0.5, 0.95)],
]


@pytest.mark.parametrize(("params", "theirs"), FILTERS, ids=range(len(FILTERS)))
@pytest.mark.parametrize("spread", [0.3, 3.0, 20.0])
def test_a_filter_is_transformers(
    params: SamplingParams, theirs: LogitsProcessor, spread: float
) -> None:
    for row_1V in logits(20, seed=1, spread=spread).split(1):
        expected = theirs(torch.zeros(1, 0), row_1V.clone()).softmax(-1)[0]
        mine = filtered(row_1V[0], params)
        assert torch.equal(mine > 0, expected > 0)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-7)


COMBINED = [
    replace(WARM, temperature=0.7, top_k=20, top_p=0.9),
    replace(WARM, temperature=1.4, top_p=0.95, typical_p=0.8),
    replace(WARM, temperature=2.0, top_k=50, min_p=0.02, typical_p=0.9),
    replace(WARM, temperature=0.3, top_k=40, top_p=0.99, min_p=0.001, typical_p=0.95),
    replace(WARM, repetition_penalty=1.3, temperature=0.8, top_p=0.8),
    replace(WARM, repetition_penalty=0.7, top_k=10),
]


def chain(params: SamplingParams) -> LogitsProcessorList:
    """In transformers' order."""
    every: list[LogitsProcessor] = []
    if params.repetition_penalty != 1.0:
        every.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    every.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        every.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        every.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        every.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        every.append(TypicalLogitsWarper(params.typical_p))
    return LogitsProcessorList(every)


@pytest.mark.parametrize("params", COMBINED, ids=range(len(COMBINED)))
def test_a_draw_is_the_inverse_of_transformers_distribution(params: SamplingParams) -> None:
    prompt, answer = [3, 5, 5, 60], [9, 9, 2]
    for seed, row_1V in enumerate(logits(40, seed=2).split(1)):
        context = torch.tensor([[*prompt, *answer]])
        probs_V = chain(params)(context, row_1V.clone()).softmax(-1)[0].double()
        (token,) = draw(row_1V, wish(replace(params, seed=seed), prompt, answer))
        assert probs_V[token] > 0
        # The uniform number lies in the token's own stretch of the cumulative sum.
        at, until = uniform(seed, len(answer)), float(probs_V[: token + 1].sum())
        assert until - float(probs_V[token]) - 1e-5 <= at <= until + 1e-5


def test_top_k_keeps_equals() -> None:
    """As transformers does: cutting them by position would favour low ids."""
    row_V = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    assert (filtered(row_V, replace(WARM, top_k=2)) > 0).tolist() == [True] * 4 + [False]


def test_whatever_the_filters_one_token_is_left() -> None:
    params = replace(WARM, top_k=1, top_p=1e-9, min_p=1.0, typical_p=1e-9)
    for row_V in logits(10):
        assert filtered(row_V, params).nonzero().flatten().tolist() == [int(row_V.argmax())]


def test_a_very_low_temperature_is_nearly_greedy() -> None:
    values_KV = logits(20)
    params = replace(PLAIN, temperature=1e-4)
    assert draw(values_KV, *[wish(params)] * 20) == values_KV.argmax(-1).tolist()


# ---- penalties and bias


def best_after(scores_V: Tensor) -> list[int]:
    return [int(scores_V.argmax())]


@pytest.mark.parametrize("penalty", [1.2, 5.0, 0.5])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    for seed in range(30):
        # Above zero it divides, below it multiplies.
        row_1V = logits(1, seed=seed) - 12 * (seed % 2)
        # The likeliest ones have been said, in prompt and answer.
        said = row_1V[0].topk(6).indices.tolist()
        expected = theirs(torch.tensor([said]), row_1V.clone())[0]
        asked = wish(replace(PLAIN, repetition_penalty=penalty), said[::2], said[1::2])
        assert draw(row_1V, asked) == best_after(expected)


@pytest.mark.parametrize("num_seen", range(5))
def test_tokens_that_are_known_to_be_in_the_text_need_no_search(num_seen: int) -> None:
    params = replace(PLAIN, repetition_penalty=1.7)
    prompt, answer = [5, 5, 7], [7, 9, 9, 11]
    array_S = array("q", {*prompt, *answer[:num_seen]})
    for row_1V in logits(40, seed=3).split(1):
        asked = wish(params, prompt, answer)
        known = replace(asked, seen=array_S, num_seen=num_seen)
        assert torch.equal(_adjust(row_1V[0], known), _adjust(row_1V[0], asked))
    array_S.append(1)  # Nothing holds its memory.


@pytest.mark.parametrize(
    ("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (1.0, 0.7), (-0.5, -1.0)]
)
def test_frequency_and_presence_penalties_are_openais(frequency: float, presence: float) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c over the answer only."""
    params = replace(PLAIN, frequency_penalty=frequency, presence_penalty=presence)
    moved = 0
    for seed in range(40):
        row_1V = logits(1, seed=seed, spread=1.5)
        first, second, third = row_1V[0].topk(3).indices.tolist()
        answer = [first] * (seed % 4) + [second] * (seed % 3)
        counts_V = torch.bincount(torch.tensor([*answer, V - 1]), minlength=V)
        counts_V[V - 1] -= 1
        expected = row_1V[0] - frequency * counts_V - presence * (counts_V > 0)
        # What the prompt said does not count.
        assert draw(row_1V, wish(params, [third] * 5, answer)) == best_after(expected)
        moved += int(expected.argmax()) != first
    if frequency + presence > 0:
        assert moved > 5


def test_logit_bias_moves_and_bans() -> None:
    values_1V = logits(1)
    best, second = values_1V[0].topk(2).indices.tolist()
    assert draw(values_1V, wish(replace(PLAIN, logit_bias=((best, -100.0),)))) == [second]
    assert draw(values_1V, wish(replace(PLAIN, logit_bias=((42, 100.0), (best, 1.0))))) == [42]


def test_penalties_reach_sampled_rows_too() -> None:
    values_1V = torch.zeros(1, V)
    params = replace(WARM, logit_bias=tuple((token, -100.0) for token in range(V) if token != 11))
    assert draw(values_1V, wish(params)) == [11]


# ---- grammars


def words_of(allowed: Sequence[int], size: int) -> list[int]:
    words = [0] * -(-size // 32)
    for token in allowed:
        words[token // 32] |= 1 << (token % 32)
    return words


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("size", [V, 64, 70])
def test_only_what_the_grammar_allows(temperature: float, size: int) -> None:
    """`size`: the tokenizer's vocabulary, to whose end the mask goes; the model's has V."""
    params = replace(PLAIN, temperature=temperature)
    for seed in range(20):
        row_1V = logits(1, seed=seed)
        may = [2, 31, 32, 33, 63]
        (token,) = draw(row_1V, wish(replace(params, seed=seed), allowed=words_of(may, size)))
        assert token in may
        if temperature == 0.0:
            assert token == max(may, key=lambda one: float(row_1V[0, one]))


def test_a_padded_vocabulary_is_never_drawn_from() -> None:
    values_1V = torch.zeros(1, 128)
    values_1V[0, 64:] = 50
    everything = words_of(range(64), 64)
    assert draw(values_1V, wish(PLAIN, allowed=everything))[0] < 64


def test_a_mask_may_be_wider_than_the_logits() -> None:
    assert draw(logits(1), wish(PLAIN, allowed=words_of([5, 127], 128))) == [5]


def test_one_rows_mask_is_not_anothers() -> None:
    values_KV = logits(1).repeat(3, 1)
    best = int(values_KV[0].argmax())
    assert draw(values_KV, wish(PLAIN), wish(PLAIN, allowed=words_of([5], V)), wish(PLAIN)) == [
        best,
        5,
        best,
    ]
