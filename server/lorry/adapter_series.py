"""The series of metrics that each adapter and version has."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, Histogram

# Wide enough for a laptop's CPU as well as for a GPU: seconds.
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
EACH = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)


class AdapterSeries:
    """Counters per adapter and version. A request that sums two counts for both; one without any
    counts under the base's name, which no adapter can have."""

    def __init__(self, collectors: CollectorRegistry) -> None:
        labels = ("adapter", "version")
        self._requests = Counter(
            "lorry_adapter_requests",
            "Finished requests, by adapter and reason.",
            (*labels, "finished_reason"),
            registry=collectors,
        )
        self._errors = Counter(
            "lorry_adapter_errors",
            "Accepted requests that failed, by adapter.",
            labels,
            registry=collectors,
        )
        self._prompt = Counter(
            "lorry_adapter_prompt_tokens", "Prompt tokens accepted.", labels, registry=collectors
        )
        self._queried = Counter(
            "lorry_adapter_prefix_cache_queries",
            "Prompt tokens looked for in the prefix cache.",
            labels,
            registry=collectors,
        )
        self._hits = Counter(
            "lorry_adapter_prefix_cache_hits",
            "Prompt tokens found in the prefix cache.",
            labels,
            registry=collectors,
        )
        self._drafts = Counter(
            "lorry_adapter_spec_decode_draft_tokens",
            "Tokens drafted from the request's own text.",
            labels,
            registry=collectors,
        )
        self._accepted = Counter(
            "lorry_adapter_spec_decode_accepted_tokens",
            "Drafted tokens that were right.",
            labels,
            registry=collectors,
        )
        self._generated = Counter(
            "lorry_adapter_generated_tokens", "Tokens generated.", labels, registry=collectors
        )
        self._first = Histogram(
            "lorry_adapter_time_to_first_token_seconds",
            "Time from arrival to the first token.",
            labels,
            registry=collectors,
            buckets=FIRST,
        )
        self._each = Histogram(
            "lorry_adapter_time_per_token_seconds",
            "Mean time of a request's tokens after the first.",
            labels,
            registry=collectors,
            buckets=EACH,
        )
        # One lock for the check and the count: a request that outlives its adapter must not bring
        # the removed series back.
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], set[str]] = {}
        """Observed reasons, for every adapter and version that has series."""

    def accepted(self, names: tuple[tuple[str, str], ...], prompt_tokens: int) -> None:
        with self._lock:
            for name in names:
                self._known.setdefault(name, set())
                self._prompt.labels(*name).inc(prompt_tokens)
                for metric in (
                    self._errors,
                    self._queried,
                    self._hits,
                    self._drafts,
                    self._accepted,
                ):
                    metric.labels(*name)

    def searched(self, names: tuple[tuple[str, str], ...], tokens: int, cached: int) -> None:
        with self._lock:
            for name in names:
                if name in self._known:
                    self._queried.labels(*name).inc(tokens)
                    self._hits.labels(*name).inc(cached)

    def first_token(self, names: tuple[tuple[str, str], ...], seconds: float) -> None:
        with self._lock:
            for name in names:
                if name in self._known:
                    self._first.labels(*name).observe(seconds)

    def drafted(self, names: tuple[tuple[str, str], ...], drafts: int, accepted: int) -> None:
        with self._lock:
            for name in names:
                if name in self._known:
                    self._drafts.labels(*name).inc(drafts)
                    self._accepted.labels(*name).inc(accepted)

    def finished(
        self, names: tuple[tuple[str, str], ...], reason: str, tokens: int, each: float | None
    ) -> None:
        with self._lock:
            for name in names:
                if name not in self._known:
                    continue
                self._known[name].add(reason)
                self._requests.labels(*name, reason).inc()
                self._generated.labels(*name).inc(tokens)
                if each is not None:
                    self._each.labels(*name).observe(each)
                if reason == "error":
                    self._errors.labels(*name).inc()

    def forget(self, adapter: str, version: str | None) -> None:
        with self._lock:
            gone = [
                name for name in self._known if name[0] == adapter and version in (None, name[1])
            ]
            for name in gone:
                for reason in self._known.pop(name):
                    self._requests.remove(*name, reason)
                for metric in (
                    self._errors,
                    self._prompt,
                    self._queried,
                    self._hits,
                    self._drafts,
                    self._accepted,
                    self._generated,
                ):
                    metric.remove(*name)
                for histogram in (self._first, self._each):
                    histogram.remove(*name)
