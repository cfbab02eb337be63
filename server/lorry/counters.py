"""Metrics for events at every token: plain numbers, converted to samples at the scrape.

prometheus_client's own counters take a lock for each number that they change, and a histogram
changes two: ten microseconds per token, in the middle of a step. These have one writer each, and a
scrape reads the current numbers: a sum may be one value ahead of its count.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString


class PlainCounter:
    """A counter of one series. One thread adds."""

    def __init__(
        self, name: str, help: str, labels: Mapping[str, str], registry: CollectorRegistry
    ) -> None:
        self.value = 0
        self._name, self._help, self._labels = name, help, dict(labels)
        self._created = time.time()
        registry.register(self)

    def describe(self) -> list[Metric]:
        return self.collect()

    def collect(self) -> list[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), self.value, created=self._created)
        return [family]


class PlainHistogram:
    """A histogram of one series. One thread observes."""

    def __init__(
        self,
        name: str,
        help: str,
        buckets: Sequence[float],
        labels: Mapping[str, str],
        registry: CollectorRegistry,
    ) -> None:
        """`buckets`: upper bounds, ascending; larger values are counted too."""
        assert list(buckets) == sorted(buckets)
        self._name, self._help, self._labels = name, help, dict(labels)
        self._bounds = tuple(float(bound) for bound in buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._created = time.time()
        registry.register(self)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> list[Metric]:
        return self.collect()

    def collect(self) -> list[Metric]:
        total, counts = self._sum, accumulate(self._counts)
        bounds = (*map(floatToGoString, self._bounds), "+Inf")
        family = HistogramMetricFamily(self._name, self._help, labels=tuple(self._labels))
        family.add_metric(
            tuple(self._labels.values()), list(zip(bounds, counts, strict=True)), sum_value=total
        )
        family.add_sample(f"{self._name}_created", self._labels, self._created)
        return [family]
