"""Which adapter each request asks for.

identical      all the same one
distinct       one after the other, so that neighbours differ
uniform        any, each as likely
zipf:A         the k-th most popular with probability proportional to 1 / k^A
power:A        S-LoRA's power law: adapter floor(N x), x on [0, 1) with density A x^(A-1);
               1 is uniform, less is more skewed
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

KINDS = ("identical", "distinct", "uniform", "zipf", "power")
DEFAULTS = {"zipf": 1.5, "power": 0.3}


@dataclass(frozen=True, slots=True)
class Popularity:
    kind: str
    exponent: float | None = None

    def __post_init__(self) -> None:
        assert self.kind in KINDS
        assert (self.exponent is not None) == (self.kind in DEFAULTS)

    def __str__(self) -> str:
        return self.kind if self.exponent is None else f"{self.kind}:{self.exponent:g}"

    def draw(self, count: int, adapters: int, dice: random.Random) -> list[int]:
        """`count` choices among 0 ... adapters - 1."""
        assert adapters >= 1
        match self.kind:
            case "identical":
                return [0] * count
            case "distinct":
                return [index % adapters for index in range(count)]
            case "uniform":
                return [dice.randrange(adapters) for _ in range(count)]
            case "zipf":
                assert self.exponent is not None
                weights = [1 / (k + 1) ** self.exponent for k in range(adapters)]
                return dice.choices(range(adapters), cum_weights=list(accumulate(weights)), k=count)
            case _:
                assert self.exponent is not None
                # The inverse of x^A; below 1 by random()'s contract, so floor stays below N.
                return [
                    min(adapters - 1, int(adapters * dice.random() ** (1 / self.exponent)))
                    for _ in range(count)
                ]


DISTINCT = Popularity("distinct")


def parse(text: str) -> Popularity:
    """`uniform`, `zipf:1.5`, ... Raises ValueError with what is allowed."""
    kind, _, exponent = text.strip().partition(":")
    if kind not in KINDS or (exponent and kind not in DEFAULTS):
        raise ValueError("give identical, distinct, uniform, zipf:A or power:A")
    if kind not in DEFAULTS:
        return Popularity(kind)
    try:
        value = float(exponent) if exponent else DEFAULTS[kind]
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise ValueError(f"{kind} takes a number above 0, as in {kind}:{DEFAULTS[kind]}")
    return Popularity(kind, value)
