"""Divergence of one adapter's answers from another's: two numbers, measured on a running server.

Measured over HTTP, not with a second copy of the model: this compares the quantized base, the
kernels and the adapters as they are served, and the server may run on another machine.

The API returns the logprob of a token, not a whole distribution. That is enough for

    KL(p||q) per token = mean of log p(x) - log q(x) over tokens x that p drew

at temperature 1 from all of p: no table of the likeliest tokens stands in for the rest, the
estimate is unbiased, and its standard error over the prompts is given with it. p's logprobs
come with its answer; q's from scoring the same tokens as a prompt.

Changed tokens: the share of p's greedy answer where q would choose another token after the same
prefix. A token to which q gives more than half of the probability is also q's choice. For the
others, q generates one token after each prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from lorry.cli.server_connection import Connection, ServerError

BASE = "base"
"""The name of the base model here. An adapter of that name is `base@1`."""

_AT_ONCE = 4
"""Number of prompts sent at once. The server batches them."""

_PREFIXES = 32
"""Number of prefixes in one request. A server may refuse more rows than it can queue."""

_SURE = math.log(0.5)
_NOISE = 1e-3
"""Nats: the same logprob from a prompt and from a draw may differ by rounding."""


@dataclass(frozen=True, slots=True)
class Side:
    """An adapter with its scale, or the base."""

    label: str
    spec: Any
    """The adapter spec for the API."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A generated answer, as tokens that follow the prompt's."""

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    text: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """How `other` judges what `side` says."""

    side: str
    other: str
    kl: float
    """Nats per token, KL(side || other)."""
    error: float | None
    """Standard error of `kl` over prompts; None if there is only one prompt."""
    tokens: int
    """Drawn, that `kl` is a mean over."""
    changed: int
    """Of `greedy` tokens."""
    greedy: int


@dataclass(frozen=True, slots=True)
class Shown:
    prompt: str
    answers: dict[str, str]
    """Greedy, by side."""


@dataclass(frozen=True, slots=True)
class Comparison:
    divergences: tuple[Divergence, ...]
    shown: tuple[Shown, ...]
    """Every prompt, in order."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """One prompt's share of a Divergence."""

    log_ratios: list[float]
    changed: int
    greedy: int


def compare(
    server: Connection,
    sides: Sequence[Side],
    prompts: Sequence[str],
    tokens: int,
    seed: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Measure both ways between the first two sides, and from each to a third, if there is one.
    `tell` is given the prompts that are done, and all.

    Raises ServerError.
    """
    first, second, *rest = sides
    pairs = [(first, second), (second, first)]
    pairs += [(side, other) for other in rest for side in (first, second)]

    def one(index: int) -> tuple[list[_Judged], Shown]:
        return _prompt(server, pairs, prompts[index], tokens, seed + index)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        work = [pool.submit(one, index) for index in range(len(prompts))]
        try:
            for count, item in enumerate(as_completed(work), start=1):
                item.result()
                tell(count, len(work))
            done = [item.result() for item in work]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    divergences = [
        _divergence(side, other, [judged[at] for judged, _ in done])
        for at, (side, other) in enumerate(pairs)
    ]
    return Comparison(tuple(divergences), tuple(shown for _, shown in done))


def _prompt(
    server: Connection, pairs: Sequence[tuple[Side, Side]], prompt: str, tokens: int, seed: int
) -> tuple[list[_Judged], Shown]:
    sides = {side.label: side for side, _ in pairs}
    drawn = {name: _answer(server, side, prompt, tokens, seed) for name, side in sides.items()}
    greedy = {name: _answer(server, side, prompt, tokens, None) for name, side in sides.items()}
    judged = []
    for side, other in pairs:
        sample, best = drawn[side.label], greedy[side.label]
        theirs = _scores(server, other, sample)
        ratios = [mine - its for mine, its in zip(sample.logprobs, theirs, strict=True)]
        judged.append(_Judged(ratios, _changed(server, other, best), len(best.ids)))
    return judged, Shown(prompt, {name: answer.text for name, answer in greedy.items()})


def _answer(
    server: Connection, side: Side, prompt: str, tokens: int, seed: int | None
) -> Continuation:
    """Drawn at temperature 1 from `seed`, or greedy without one."""
    how = {"do_sample": False} if seed is None else {"temperature": 1.0, "seed": seed}
    body = server.request(
        "POST",
        "/generate",
        json={
            "inputs": prompt,
            "adapter": side.spec,
            "parameters": {
                "max_new_tokens": tokens,
                "details": True,
                "decoder_input_details": True,
                **how,
            },
        },
    )
    details = body["details"]
    return Continuation(
        prompt_ids=[token["id"] for token in details["prefill"]],
        ids=[token["id"] for token in details["tokens"]],
        logprobs=[token["logprob"] for token in details["tokens"]],
        text=body["generated_text"],
    )


def _scores(server: Connection, side: Side, answer: Continuation) -> list[float]:
    """The logprob that `side` gives each token of the answer."""
    body = server.request(
        "POST",
        "/v1/completions",
        json={
            "prompt": answer.prompt_ids + answer.ids,
            "adapter": side.spec,
            "max_tokens": 0,
            "echo": True,
            "logprobs": 0,
        },
    )
    (choice,) = body["choices"]
    scores = choice["logprobs"]["token_logprobs"][len(answer.prompt_ids) :]
    if len(scores) != len(answer.ids) or any(score is None for score in scores):
        raise ServerError("the server scored other tokens than it was asked to; is it a Lorry?")
    return [float(score) for score in scores]


def _changed(server: Connection, side: Side, answer: Continuation) -> int:
    """How many of the answer's tokens are not what `side` would choose there."""
    scores = _scores(server, side, answer)
    unsure = [at for at, score in enumerate(scores) if score <= _SURE]
    changed = 0
    for start in range(0, len(unsure), _PREFIXES):
        some = unsure[start : start + _PREFIXES]
        body = server.request(
            "POST",
            "/v1/completions",
            json={
                "prompt": [answer.prompt_ids + answer.ids[:at] for at in some],
                "adapter": side.spec,
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 1,
                "ignore_eos": True,
            },
        )
        for at, choice in zip(some, body["choices"], strict=True):
            (best,) = choice["logprobs"]["token_logprobs"]
            changed += scores[at] < best - _NOISE
    return changed


def _divergence(side: Side, other: Side, judged: Sequence[_Judged]) -> Divergence:
    sums = [sum(one.log_ratios) for one in judged]
    counts = [len(one.log_ratios) for one in judged]
    tokens = sum(counts)
    mean = sum(sums) / tokens if tokens else 0.0
    error = None
    if len(judged) > 1 and tokens:
        # A prompt's tokens hang together: the prompts are the draws, the mean a ratio of sums.
        spread = sum((s - mean * n) ** 2 for s, n in zip(sums, counts, strict=True))
        error = math.sqrt(spread * len(judged) / (len(judged) - 1)) / tokens
    return Divergence(
        side=side.label,
        other=other.label,
        kl=mean,
        error=error,
        tokens=tokens,
        changed=sum(one.changed for one in judged),
        greedy=sum(one.greedy for one in judged),
    )
