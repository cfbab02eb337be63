"""When the requests of an open load arrive: a renewal process with Gamma-distributed gaps.

A coefficient of variation of 1 is Poisson; above, requests come in bursts; 0 is a metronome.
"""

from __future__ import annotations

import random


def times(count: int, rate: float, cv: float, dice: random.Random) -> list[float]:
    """Seconds after the start of each of `count` arrivals, `rate` a second on average."""
    assert rate > 0 and cv >= 0
    now = 0.0
    found = []
    for _ in range(count):
        now += gap(rate, cv, dice)
        found.append(now)
    return found


def gap(rate: float, cv: float, dice: random.Random) -> float:
    """Mean 1/rate, standard deviation cv/rate: Gamma of shape 1/cv^2 and scale cv^2/rate."""
    if cv == 0:
        return 1 / rate
    return dice.gammavariate(1 / (cv * cv), cv * cv / rate)
