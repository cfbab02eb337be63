"""Drawing without a sort gives what sorting the whole vocabulary gives, to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry.core import Sample, SamplingParams
from lorry.model.compiled import recipe
from lorry.model.compiled.compiled_drawing import CompiledDrawing
from lorry.model.drawing import Drawing, TorchDrawing
from lorry.model.logits import Logits
from lorry.model.sampler import filtered, sample, uniform
from support.compiled import compiled


class SortedSelection:
    """The definition: one sort of everything, one cumulative sum."""

    def keep_mass(
        self, probs_V: Tensor, preference_V: Tensor, mass: float, *, floor: float
    ) -> Tensor:
        order_V = preference_V.masked_fill(probs_V == 0, float("-inf")).argsort(
            descending=True, stable=True
        )
        before_V = probs_V[order_V].cumsum(0) - probs_V[order_V]
        kept_V = probs_V.clone()
        kept_V[order_V[before_V >= mass]] = 0.0
        return kept_V

    def draw(self, weights_V: Tensor, number: float) -> int:
        cumulative = (weights_V / weights_V.sum()).double().cumsum(0).tolist()
        at = number * cumulative[-1]
        exceeding = [token for token, up_to in enumerate(cumulative) if up_to > at]
        return exceeding[0] if exceeding else int(weights_V.nonzero()[-1])


SORTED = SortedSelection()


@pytest.fixture(scope="module", params=["torch", *recipe.INSTRUCTIONS])
def selection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drawing:
    if request.param == "torch":
        return TorchDrawing()
    return CompiledDrawing(compiled(request.param, tmp_path_factory.mktemp("built")))


@dataclass(frozen=True)
class Shape:
    """Of a row of logits."""

    size: int
    kind: str
    spread: float
    seed: int
    masked: float
    """Share of the tokens that a grammar has taken out."""

    def logits(self) -> Tensor:
        dice = torch.Generator().manual_seed(self.seed)
        values_V = torch.randn(self.size, generator=dice)
        match self.kind:
            case "ties":
                values_V = values_V.round()
            case "all alike":
                values_V = torch.zeros(self.size)
            case "two values":
                values_V = (values_V > 1).float()
            case "a peak":
                values_V[self.seed % self.size] = 10.0
            case "a tail":
                values_V = values_V.abs().neg().sort().values
            case "neighbours in fp32":
                steps_V = torch.randint(0, 5, (self.size,), generator=dice)
                values_V = (torch.ones(self.size).view(torch.int32) + steps_V.int()).view(
                    torch.float32
                )
        out_V = torch.rand(self.size, generator=dice) < self.masked
        out_V[self.seed % self.size] = False
        return (values_V * self.spread).masked_fill(out_V, float("-inf"))


KINDS = ["normal", "ties", "all alike", "two values", "a peak", "a tail", "neighbours in fp32"]

shapes = st.builds(
    Shape,
    size=st.sampled_from([1, 15, 16, 17, 97, 1000, 5000, 20001]),
    kind=st.sampled_from(KINDS),
    spread=st.sampled_from([1e-3, 0.1, 1.0, 4.0, 30.0]),
    seed=st.integers(0, 2**16),
    masked=st.sampled_from([0.0, 0.0, 0.5, 0.999]),
)
masses = st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 0.99999, 1 - 1e-7]) | st.floats(
    1e-6, 0.999999
)
filters = st.builds(
    SamplingParams,
    max_new_tokens=st.just(1),
    temperature=st.sampled_from([0.01, 0.8, 1.0, 5.0]),
    top_k=st.sampled_from([0, 0, 1, 40, 3000]),
    top_p=st.just(1.0) | masses,
    min_p=st.sampled_from([0.0, 0.0, 1e-6, 0.05, 1.0]),
    typical_p=st.just(1.0) | masses,
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=400)
@given(shape=shapes, params=filters)
def test_what_is_kept_is_what_a_sort_keeps(
    selection: Drawing, shape: Shape, params: SamplingParams
) -> None:
    scores_V = shape.logits() / params.temperature
    assert torch.equal(filtered(scores_V, params, selection), filtered(scores_V, params, SORTED))


@settings(max_examples=150)
@given(shape=shapes, params=filters, numbers=st.lists(st.floats(0, 1, exclude_max=True)))
def test_a_number_falls_on_the_token_on_which_it_falls(
    selection: Drawing, shape: Shape, params: SamplingParams, numbers: list[float]
) -> None:
    weights_V = filtered(shape.logits(), params, SORTED)
    cumulative_V = (weights_V / weights_V.sum()).double().cumsum(0)
    # The ends of tokens, where the last bit of a sum decides.
    ends = (cumulative_V[:: max(1, shape.size // 50)] / cumulative_V[-1]).tolist()
    for number in [*numbers, *ends, 0.0, 1 - 2**-53]:
        if number < 1:
            assert selection.draw(weights_V, number) == SORTED.draw(weights_V, number)


@settings(max_examples=100)
@given(shape=shapes, params=st.lists(filters, min_size=2, max_size=4))
def test_rows_are_drawn_as_alone_and_as_by_a_sort(
    selection: Drawing, shape: Shape, params: list[SamplingParams]
) -> None:
    rows = [replace(shape, seed=shape.seed + row).logits() for row in range(len(params))]
    wishes = [Sample(each, [1], [2] * row, None) for row, each in enumerate(params)]
    together = [
        token.token_id for token, _ in sample(Logits.of(torch.stack(rows)), wishes, selection)
    ]
    for row_V, wish, token in zip(rows, wishes, together, strict=True):
        ((alone, _),) = sample(Logits.of(row_V[None]), [wish], selection)
        weights_V = filtered(row_V / wish.params.temperature, wish.params, SORTED)
        number = uniform(wish.params.seed, len(wish.answer))
        assert token == alone.token_id == SORTED.draw(weights_V, number)


_ANY_NUMBER = st.sampled_from([float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 0.0])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2999), _ANY_NUMBER), min_size=1, max_size=4),
    st.booleans(),
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 1e-6, 1.0]),
            "top_k": st.sampled_from([0, 40]),
            "top_p": st.sampled_from([1.0, 0.9]),
            "min_p": st.sampled_from([0.0, 0.1]),
            "typical_p": st.sampled_from([1.0, 0.5]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "logit_bias": st.sampled_from([(), ((3, 5.0),)]),
        }
    ),
    st.booleans(),
)
def test_a_row_that_is_no_numbers_does_not_end_the_step(
    selection: Drawing,
    spoilt: list[tuple[int, float]],
    everywhere: bool,
    fields: dict[str, Any],
    narrowed: bool,
) -> None:
    """It gets a token of no finite probability, which the engine refuses; its neighbour the one
    that it gets alone."""
    values_KV = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1))
    neighbour = values_KV[1:].clone()
    for token, value in spoilt:
        values_KV[0, slice(None) if everywhere else token] = value
    params = SamplingParams(max_new_tokens=9, seed=7, **fields)
    allowed = [0b101000] + [0] * 93 if narrowed else None
    wish = Sample(params, (1, 2), (), allowed)
    (first, _), (second, _) = sample(Logits.of(values_KV), [wish, wish], selection)
    assert [(second, ())] == sample(Logits.of(neighbour), [wish], selection)
    assert 0 <= first.token_id < 3000
    if not math.isfinite(float(values_KV[0].logsumexp(-1))):
        assert not math.isfinite(first.logprob)
