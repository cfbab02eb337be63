"""From samples to figures: percentiles of one repeat, medians over repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from lorry.bench.load import LoadRun, LoadSample

NOWHERE = math.nan
"""A figure of nothing: no request succeeded."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles, in seconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(percentile(values, 50), percentile(values, 90), percentile(values, 99))


@dataclass(frozen=True, slots=True)
class Figures:
    """One repeat of a row; or, with `throughputs` of more than one, the median of several."""

    tokens_per_second: float
    """Output tokens of whole answers over the time from the first request to the last answer."""
    requests_per_second: float
    first_token: Spread
    """From the request sent to its first token."""
    per_token: Spread
    """Of each request: from its first token to its last, over the tokens after the first."""
    end_to_end: Spread
    longest_pause: float
    """Between two tokens of one answer."""
    seconds: float
    tokens: int
    requests: int
    errors: int
    problems: dict[str, int]
    """What went wrong, and how often."""
    client_share: float
    """Of one core, taken by the generator itself."""
    late: float
    throughputs: tuple[float, ...]
    """`tokens_per_second` of each repeat, in order."""
    cached: float = NOWHERE
    """Share of the prompts' tokens that the server found in a prefix cache, by its own account."""
    first_token_by_turn: tuple[float, ...] = ()
    """Medians in seconds. Empty without conversations."""


def of(run: LoadRun) -> Figures:
    good = [sample for sample in run.samples if sample.reading.problem is None]
    problems = Counter(
        sample.reading.problem for sample in run.samples if sample.reading.problem is not None
    )
    tokens = sum(sample.reading.tokens for sample in good)
    seconds = run.seconds or NOWHERE
    rate = tokens / seconds
    prompts = sum(sample.reading.prompt_tokens for sample in good)
    cached = sum(sample.reading.cached_tokens for sample in good)
    return Figures(
        tokens_per_second=rate,
        requests_per_second=len(good) / seconds,
        first_token=Spread.of([sample.reading.times[0] - sample.sent for sample in good]),
        per_token=Spread.of([_per_token(sample) for sample in good if sample.reading.tokens > 1]),
        end_to_end=Spread.of([sample.ended - sample.sent for sample in good]),
        longest_pause=max((_longest_pause(sample) for sample in good), default=NOWHERE),
        seconds=run.seconds,
        tokens=tokens,
        requests=len(run.samples),
        errors=len(run.samples) - len(good),
        problems=dict(problems),
        client_share=run.client_seconds / seconds,
        late=run.late,
        throughputs=(rate,),
        cached=cached / prompts if prompts else NOWHERE,
        first_token_by_turn=_by_turn(good),
    )


def middle(repeats: Sequence[Figures]) -> Figures:
    """The median of every figure; requests, tokens and errors added up."""
    assert repeats

    def spread(parts: Sequence[Spread]) -> Spread:
        return Spread(
            median(part.p50 for part in parts),
            median(part.p90 for part in parts),
            median(part.p99 for part in parts),
        )

    return Figures(
        tokens_per_second=median(one.tokens_per_second for one in repeats),
        requests_per_second=median(one.requests_per_second for one in repeats),
        first_token=spread([one.first_token for one in repeats]),
        per_token=spread([one.per_token for one in repeats]),
        end_to_end=spread([one.end_to_end for one in repeats]),
        longest_pause=max(one.longest_pause for one in repeats),
        seconds=median(one.seconds for one in repeats),
        tokens=sum(one.tokens for one in repeats),
        requests=sum(one.requests for one in repeats),
        errors=sum(one.errors for one in repeats),
        problems=dict(sum((Counter(one.problems) for one in repeats), Counter())),
        client_share=median(one.client_share for one in repeats),
        late=max(one.late for one in repeats),
        throughputs=tuple(rate for one in repeats for rate in one.throughputs),
        cached=median(one.cached for one in repeats),
        first_token_by_turn=tuple(
            map(median, zip(*(one.first_token_by_turn for one in repeats), strict=False))
        ),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the two nearest; NaN of nothing."""
    if not values:
        return NOWHERE
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _by_turn(samples: Sequence[LoadSample]) -> tuple[float, ...]:
    turns = sorted({sample.ask.turn for sample in samples})
    if len(turns) < 2:
        return ()
    return tuple(
        median(sample.reading.times[0] - sample.sent for sample in samples if sample.ask.turn == at)
        for at in turns
    )


def _per_token(sample: LoadSample) -> float:
    times = sample.reading.times
    return (times[-1] - times[0]) / (sample.reading.tokens - 1)


def _longest_pause(sample: LoadSample) -> float:
    times = sample.reading.times
    return max((after - before for before, after in pairwise(times)), default=0)
