"""Draws: fixed by seed and position, and as often as the distribution says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lorry.model import sampler
from lorry.model.logits import Logits
from lorry.model.sampler import uniform
from support.drawn import PLAIN, WARM, draw, logits, sample, wish


def test_the_same_seed_and_position_draw_the_same_token_in_any_company() -> None:
    values_KV = logits(6, seed=3, spread=1.0)
    wishes = [
        wish(replace(WARM, seed=7), answer=[1, 2]),
        wish(PLAIN),
        wish(replace(WARM, seed=2**63 + 5, temperature=0.8, top_p=0.9)),
        wish(replace(WARM, seed=7), answer=[1, 2, 3]),
        wish(replace(WARM, seed=8, frequency_penalty=1.0), answer=[1, 1]),
        wish(replace(WARM, seed=0)),
    ]
    together = draw(values_KV, *wishes)
    alone = [draw(values_KV[k : k + 1], one)[0] for k, one in enumerate(wishes)]
    order = [3, 1, 5, 0, 4, 2]
    shuffled = draw(values_KV[order], *[wishes[k] for k in order])
    assert together == alone
    assert shuffled == [together[k] for k in order]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of probability 0 lie there, too."""
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: number)
    values_1V = logits(1)
    values_1V[0, 40] = 50
    assert draw(values_1V, wish(replace(WARM, top_k=1))) == [40]


def test_what_it_is_given_stays_as_it_is() -> None:
    """The arrays are the runner's, and the next row's."""
    given = Logits.of(logits(2))
    before = [part.clone() for part in (given.values_KV, given.best_K, given.norm_K)]
    everything = replace(WARM, logit_bias=((3, 50.0),), repetition_penalty=2.0, presence_penalty=1)
    sample(given, [wish(everything, answer=[1, 1])] * 2)
    after = [given.values_KV, given.best_K, given.norm_K]
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_the_uniform_numbers_are_fixed_and_spread() -> None:
    """Fixed: an answer with a seed must be the same after an upgrade."""
    places = [(0, 0), (0, 1), (1, 0), (2**64 - 1, 5)]
    assert [round(uniform(seed, at), 6) for seed, at in places] == PHILOX
    assert uniform(3, 4) == uniform(3 + 2**64, 4)
    drawn = [uniform(seed, at) for seed in range(40) for at in range(40)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= number < 1 for number in drawn)


PHILOX = [0.011547, 0.50238, 0.303568, 0.462925]

CHI_SQUARE = 29.9
"""Seven degrees of freedom: exceeded by chance once in 10,000; the draws are fixed."""


@pytest.mark.parametrize("by", ["seed", "position"])
def test_draws_follow_the_distribution(by: str) -> None:
    count = 3000
    values_1V = logits(1, seed=4, spread=1.0, size=8)
    wishes = [
        wish(replace(WARM, seed=i))
        if by == "seed"
        else wish(replace(WARM, seed=1), answer=range(i))
        for i in range(count)
    ]
    seen = Counter(draw(values_1V.expand(count, 8), *wishes))
    expected = (values_1V[0].softmax(-1) * count).tolist()
    assert min(expected) > 20
    assert sum((seen[k] - e) ** 2 / e for k, e in enumerate(expected)) < CHI_SQUARE


def test_temperature_and_filters_shape_the_draws() -> None:
    count = 1500
    values_1V = logits(1, seed=5, spread=1.0, size=16)
    params = replace(WARM, temperature=0.7, top_k=8)
    seen = Counter(
        draw(values_1V.expand(count, 16), *[wish(replace(params, seed=i)) for i in range(count)])
    )
    kept = values_1V[0].topk(8).indices.tolist()
    assert set(seen) == set(kept)
    expected = ((values_1V[0, kept] / 0.7).softmax(-1) * count).tolist()
    chi = sum((seen[k] - e) ** 2 / e for k, e in zip(kept, expected, strict=True))
    assert chi < CHI_SQUARE
