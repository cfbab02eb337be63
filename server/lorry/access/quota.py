"""Counts what each key uses: requests and tokens per minute, and requests at a time.

A minute's allowance is a bucket that refills steadily and holds one minute's worth. A request takes
one of its requests when it begins. Tokens are known only afterwards: they are taken when a prompt
is in the engine and when an answer has ended, and may leave the bucket below zero. The next request
is then refused until it is refilled. So the mean over time keeps to the limit, and what runs is
never cut off.

The event loop's thread only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lorry.access.api_key import KeyRecord
from lorry.errors import RateLimited

Clock = Callable[[], float]


@dataclass(slots=True)
class _Bucket:
    level: float | None = None
    """None: nothing was ever taken, so it is full."""
    seen: float = 0.0

    def fill(self, per_minute: int, now: float) -> float:
        """Refill up to now. Return the level."""
        level = per_minute if self.level is None else self.level
        passed = now - self.seen if self.level is not None else 0.0
        self.level = min(float(per_minute), level + passed * per_minute / 60)
        self.seen = now
        return self.level


@dataclass(slots=True)
class _Use:
    running: int = 0
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)


class Pass:
    """One request's permission to run. Leaving it twice does nothing."""

    def __init__(self, use: _Use) -> None:
        self._use: _Use | None = use

    def keep(self) -> Callable[[], None]:
        """Let the request go on after its answer. Return the function to call at its end."""
        kept, self._use = Pass(self._use) if self._use is not None else None, None
        return kept.leave if kept is not None else lambda: None

    def leave(self) -> None:
        if self._use is not None:
            self._use.running -= 1
            self._use = None


class Quotas:
    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def enter(self, key: KeyRecord) -> Pass:
        """Count a request of `key`. Raises RateLimited."""
        use = self._uses.setdefault(key.id, _Use())
        limits, now = key.limits, self._clock()
        if limits.concurrent_requests is not None and use.running >= limits.concurrent_requests:
            raise _limited(key, "concurrent_requests", limits.concurrent_requests, 1)
        for name, bucket, limit, least in (
            # No token is left at 0.5 either: tokens are whole.
            ("tokens_per_minute", use.tokens, limits.tokens_per_minute, 1),
            ("requests_per_minute", use.requests, limits.requests_per_minute, 1),
        ):
            if limit is not None:
                level = bucket.fill(limit, now)
                # A little less than one is one: the level is a sum of fractions.
                if level < least - 1e-9:
                    raise _limited(key, name, limit, math.ceil((least - level) * 60 / limit))
        if limits.requests_per_minute is not None:
            assert use.requests.level is not None
            use.requests.level -= 1
        use.running += 1
        return Pass(use)

    def spend(self, key: KeyRecord, tokens: int) -> None:
        """Take tokens that a request of `key` used."""
        limit = key.limits.tokens_per_minute
        if limit is not None and tokens:
            bucket = self._uses.setdefault(key.id, _Use()).tokens
            bucket.level = bucket.fill(limit, self._clock()) - tokens

    def forget(self, key_id: str) -> None:
        """Drop the counts of a key that is gone."""
        self._uses.pop(key_id, None)


def _limited(key: KeyRecord, name: str, limit: int, seconds: int) -> RateLimited:
    retry = max(1, seconds)
    return RateLimited(
        f"key {key.name!r} is limited to {limit} by its {name}; try again in {retry} s",
        retry_after=retry,
    )
