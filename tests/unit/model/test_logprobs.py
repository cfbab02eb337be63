"""Log-probabilities are the model's own, whatever was done to the draw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorry.core import TokenLogprob
from lorry.model.logits import Logits
from lorry.model.sampler import logprobs_of
from support.drawn import PLAIN, WARM, V, draw, logits, sample, wish


def test_logprobs_are_the_models_own_whatever_was_done_to_the_draw() -> None:
    values_KV = logits(5, seed=6)
    table_KV = values_KV.log_softmax(-1)
    params = [
        PLAIN,
        replace(WARM, temperature=3.0, seed=3),
        replace(PLAIN, logit_bias=((42, 100.0),)),
        replace(WARM, top_k=2, seed=4),
        replace(PLAIN, repetition_penalty=2.0),
    ]
    drawn = sample(Logits.of(values_KV), [wish(replace(p, top_logprobs=3)) for p in params])
    for k, (token, top) in enumerate(drawn):
        assert token.logprob == pytest.approx(float(table_KV[k, token.token_id]), abs=1e-5)
        best = table_KV[k].topk(3)
        assert [entry.token_id for entry in top] == best.indices.tolist()
        assert [entry.logprob for entry in top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_as_many_of_the_likeliest_as_were_asked_for_and_there_are() -> None:
    values_KV = logits(3, size=4)
    counts = [0, 2, 9]
    asked = [wish(replace(PLAIN, top_logprobs=count)) for count in counts]
    assert [len(top) for _, top in sample(Logits.of(values_KV), asked)] == [0, 2, 4]


def test_logprobs_of_a_prompt() -> None:
    values_KV = logits(4)
    table_KV = values_KV.log_softmax(-1)
    targets = [5, 0, V - 1, 5]
    found = logprobs_of(Logits.of(values_KV), targets)
    assert [entry.token_id for entry in found] == targets
    expected = [float(table_KV[k, target]) for k, target in enumerate(targets)]
    assert [entry.logprob for entry in found] == pytest.approx(expected, abs=1e-5)
    assert all(entry.top == () for entry in found)
    assert logprobs_of(Logits.of(values_KV[:0]), []) == ()


@pytest.mark.parametrize("count", [1, 3, V + 2])
def test_the_likeliest_in_the_place_of_each_token_of_a_prompt(count: int) -> None:
    values_KV = logits(4)
    found = logprobs_of(Logits.of(values_KV), [5, 0, V - 1, 5], count)
    for entry, logprobs_V in zip(found, values_KV.log_softmax(-1), strict=True):
        best = logprobs_V.topk(min(count, V))
        assert [one.token_id for one in entry.top] == best.indices.tolist()
        assert [one.logprob for one in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_half_precision_logits_are_widened_first() -> None:
    values_KV = logits(2).bfloat16()
    (token, _), _ = sample(Logits.of(values_KV), [wish(PLAIN)] * 2)
    best = int(values_KV[0].argmax())
    expected = float(values_KV[0].float().log_softmax(-1)[best])
    assert token == TokenLogprob(best, pytest.approx(expected, abs=1e-6))


def test_a_row_of_nans_is_its_own_misfortune() -> None:
    values_KV = logits(3)
    values_KV[1] = float("nan")
    alone = draw(values_KV[[0, 2]], wish(PLAIN), wish(replace(WARM, seed=1)))
    for params in (PLAIN, WARM, replace(WARM, top_p=0.5, typical_p=0.5, top_k=4)):
        drawn = sample(
            Logits.of(values_KV), [wish(PLAIN), wish(params), wish(replace(WARM, seed=1))]
        )
        assert [drawn[0][0].token_id, drawn[2][0].token_id] == alone
        # Not a number: what tells the scheduler to end the request.
        assert drawn[1][0].logprob != drawn[1][0].logprob


def test_log_probabilities_are_those_of_one_subtraction_in_fp32() -> None:
    for size in (1e-3, 1.0, 1e4, 1e30):
        values_KV = logits(50, spread=size)
        found = Logits.of(values_KV)
        tokens = [7 * k % V for k in range(50)]
        expected_K = values_KV[range(50), tokens] - found.norm_K
        assert found.logprobs(tokens) == expected_K.tolist()
        assert found[10:20].logprobs(tokens[10:20]) == expected_K[10:20].tolist()
