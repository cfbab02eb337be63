"""What Prometheus reads: vLLM's names where the meaning is vLLM's, `lorry_` for the rest.

Requests are counted as they go, through the `RequestMeter` that `Metrics.accepted` gives.
What the engine, the registry and the host cache know is read from them at scrape time.
Labels hold only names that the registry accepted, and a removed adapter's series go with
it, so the number of series is bounded by the number of adapters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lorry.core import EngineStats
from lorry.tally import Count, Tally
from lorry_adapters.registry.record import AdapterRecord, AdapterRef

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Wide enough for a laptop's CPU as well as for a GPU: seconds.
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_EACH = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_COUNT = (1, 2, 4, 8, 16, 32)


class CacheStats(Protocol):
    """`lorry_adapters.registry.host_cache.HostCacheStats`, as far as it is shown."""

    @property
    def entries(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def capacity_bytes(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evictions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a scrape reads what is not counted here. Called in the scrape's thread."""

    stats: Callable[[], EngineStats]
    host_cache: Callable[[], CacheStats]
    records: Callable[[], Sequence[AdapterRecord]]
    in_host_cache: Callable[[str], bool]


class Metrics:
    """All metrics of one server. Thread-safe, but for `RequestMeter.token`, which is the
    event loop's, and `observe_step`, which is the engine's."""

    def __init__(self, collectors: CollectorRegistry, *, base_name: str) -> None:
        self.collectors = collectors
        self.base_name = base_name
        self._adapters = _AdapterSeries(collectors)
        base = {"labelnames": ("model_name", "engine"), "registry": collectors}
        self._prompt_tokens = self._own(
            Counter("vllm:prompt_tokens", "Prompt tokens accepted.", **base)  # type: ignore[arg-type]
        )
        own = {"model_name": base_name, "engine": "0"}
        self._generation_tokens = Count(
            "vllm:generation_tokens", "Tokens generated.", own, collectors
        )

        def histogram(name: str, help: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(
                name, help, ("model_name", "engine"), registry=collectors, buckets=buckets
            )
            return made.labels(base_name, "0")

        self._first = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token.", _FIRST
        )
        self._between = Tally(
            "vllm:inter_token_latency_seconds",
            "Between one token and the next.",
            _EACH,
            own,
            collectors,
        )
        self._per_token = histogram(
            "vllm:time_per_output_token_seconds",
            "Mean time of a request's tokens after the first.",
            _EACH,
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token.", _WHOLE
        )
        self._prompt_length = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self._answer_length = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )
        self._asked = histogram(
            "vllm:request_params_max_tokens", "Most tokens that a request asked for.", _TOKENS
        )
        self._answers = histogram(
            "vllm:request_params_n", "Answers that a request asked for.", _COUNT
        )
        self._step_tokens = Tally(
            "vllm:iteration_tokens_total", "Tokens in one forward pass.", _TOKENS, own, collectors
        )
        self._step_seconds = Tally(
            "lorry_engine_step_seconds",
            "Time of one forward pass, sampling included.",
            _EACH,
            {},
            collectors,
        )
        self._finished = Counter(
            "vllm:request_success",
            "Requests ended, by reason.",
            ("model_name", "engine", "finished_reason"),
            registry=collectors,
        )
        self._refused = Counter(
            "lorry_refused_requests",
            "Requests answered with an error, by its code.",
            ("code",),
            registry=collectors,
        )

    def watch(self, sources: Sources) -> None:
        """Shows at every scrape what `sources` say. Once per `Metrics`."""
        self.collectors.register(_Scrape(self.base_name, sources))

    def accepted(
        self, refs: Sequence[AdapterRef], *, prompt_tokens: int, max_tokens: int
    ) -> RequestMeter:
        """A request is in the engine; the meter must be told how it goes on."""
        self._prompt_tokens.inc(prompt_tokens)
        self._prompt_length.observe(prompt_tokens)
        self._asked.observe(max_tokens)
        names = tuple((ref.name, str(ref.version)) for ref in refs) or ((self.base_name, ""),)
        self._adapters.accepted(names, prompt_tokens)
        return RequestMeter(self, names)

    def answers(self, count: int) -> None:
        """A request asked for `count` answers (`n`, `best_of`)."""
        self._answers.observe(count)

    def observe_step(self, tokens: int, seconds: float) -> None:
        """The engine ran one step. Called in its thread."""
        self._step_tokens.observe(tokens)
        self._step_seconds.observe(seconds)

    def refused(self, code: str) -> None:
        """A request was answered with the error of that code."""
        self._refused.labels(code).inc()

    def forget(self, name: str, version: int | None = None) -> None:
        """An adapter (or one version) is gone: so are its series."""
        self._adapters.forget(name, None if version is None else str(version))

    def render(self) -> bytes:
        """The scrape's body. Blocks: it asks the registry."""
        return generate_latest(self.collectors)

    def _own(self, metric: Counter) -> Counter:
        return metric.labels(self.base_name, "0")


class RequestMeter:
    """One accepted request's clock and counters. Exactly one `finish` counts. Event loop only."""

    def __init__(self, metrics: Metrics, names: tuple[tuple[str, str], ...]) -> None:
        self._metrics = metrics
        self._names = names
        self._start = time.monotonic()
        self._first = 0.0
        self._last = 0.0
        self._tokens = 0
        self._finished = False

    def token(self) -> None:
        now = time.monotonic()
        metrics = self._metrics
        if self._tokens == 0:
            self._first = now
            metrics._first.observe(now - self._start)
            metrics._adapters.first_token(self._names, now - self._start)
        else:
            metrics._between.observe(now - self._last)
        self._last = now
        self._tokens += 1
        metrics._generation_tokens.value += 1

    def finish(self, reason: str) -> None:
        """`reason`: stop, length, abort or error, as vLLM has them."""
        if self._finished:
            return
        self._finished = True
        metrics = self._metrics
        now = time.monotonic()
        metrics._finished.labels(metrics.base_name, "0", reason).inc()
        metrics._whole.observe(now - self._start)
        metrics._answer_length.observe(self._tokens)
        each = None
        if self._tokens > 1:
            each = (self._last - self._first) / (self._tokens - 1)
            metrics._per_token.observe(each)
        metrics._adapters.finished(self._names, reason, self._tokens, each)


class _AdapterSeries:
    """The counters per adapter and version. A request that sums two counts for both; one
    without any counts under the base's name, which no adapter can have."""

    def __init__(self, collectors: CollectorRegistry) -> None:
        labels = ("adapter", "version")
        self._requests = Counter(
            "lorry_adapter_requests",
            "Requests ended, by adapter and reason.",
            (*labels, "finished_reason"),
            registry=collectors,
        )
        self._errors = Counter(
            "lorry_adapter_errors", "Accepted requests that failed.", labels, registry=collectors
        )
        self._prompt = Counter(
            "lorry_adapter_prompt_tokens", "Prompt tokens accepted.", labels, registry=collectors
        )
        self._generated = Counter(
            "lorry_adapter_generated_tokens", "Tokens generated.", labels, registry=collectors
        )
        self._first = Histogram(
            "lorry_adapter_time_to_first_token_seconds",
            "From arrival to the first token.",
            labels,
            registry=collectors,
            buckets=_FIRST,
        )
        self._each = Histogram(
            "lorry_adapter_time_per_token_seconds",
            "Mean time of a request's tokens after the first.",
            labels,
            registry=collectors,
            buckets=_EACH,
        )
        # One lock over "still known?" and the count: a request that outlives its adapter
        # must not bring the removed series back.
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], set[str]] = {}
        """Reasons seen, for every adapter and version that has series."""

    def accepted(self, names: tuple[tuple[str, str], ...], prompt_tokens: int) -> None:
        with self._lock:
            for name in names:
                self._known.setdefault(name, set())
                self._prompt.labels(*name).inc(prompt_tokens)
                self._errors.labels(*name)

    def first_token(self, names: tuple[tuple[str, str], ...], seconds: float) -> None:
        with self._lock:
            for name in names:
                if name in self._known:
                    self._first.labels(*name).observe(seconds)

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
                for metric in (self._errors, self._prompt, self._generated):
                    metric.remove(*name)
                for histogram in (self._first, self._each):
                    histogram.remove(*name)


class _Scrape:
    """A custom collector: asks the sources, keeps nothing."""

    def __init__(self, model_name: str, sources: Sources) -> None:
        self._model_name = model_name
        self._sources = sources

    def describe(self) -> list[Metric]:
        """Nothing: registration must not ask an engine that is not there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._sources.stats()
        records = self._sources.records()
        yield from self._engine(stats)
        yield from self._adapters(stats, records)
        cache = self._sources.host_cache()
        yield _gauge("lorry_host_cache_adapters", "Adapters in host memory.", cache.entries)
        yield _gauge("lorry_host_cache_bytes", "Their bytes.", cache.bytes)
        yield _gauge(
            "lorry_host_cache_capacity_bytes", "Bytes they may take.", cache.capacity_bytes
        )
        yield _counter("lorry_host_cache_hits", "Loads from host memory.", cache.hits)
        yield _counter("lorry_host_cache_misses", "Loads from disk.", cache.misses)
        yield _counter(
            "lorry_host_cache_evictions", "Adapters dropped from host memory.", cache.evictions
        )

    def _engine(self, stats: EngineStats) -> Iterator[Metric]:
        used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        gauges = (
            ("vllm:num_requests_running", "Requests in the running batch.", stats.running),
            ("vllm:num_requests_waiting", "Requests that wait for it.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", used),
            (
                "vllm:num_gpu_loaded_lora_adapters",
                "Adapters in device slots.",
                len(stats.resident),
            ),
            ("vllm:max_gpu_lora_adapters", "Device slots for adapters.", stats.slots_total),
        )
        for name, help, value in gauges:
            family = GaugeMetricFamily(name, help, labels=("model_name", "engine"))
            family.add_metric((self._model_name, "0"), value)
            yield family
        preemptions = CounterMetricFamily(
            "vllm:num_preemptions",
            "Requests that gave their KV cache to others and started again.",
            labels=("model_name", "engine"),
        )
        preemptions.add_metric((self._model_name, "0"), stats.preemptions)
        yield preemptions
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The KV cache's shape.",
            labels=("model_name", "engine", "block_size", "num_gpu_blocks"),
        )
        config.add_metric(
            (self._model_name, "0", str(stats.kv_block_size), str(stats.kv_blocks_total)), 1
        )
        yield config
        yield _gauge("lorry_slots", "Device slots for adapters.", stats.slots_total)
        yield _gauge("lorry_slots_used", "Device slots that hold one.", len(stats.resident))
        yield _counter("lorry_adapter_loads", "Adapters copied to a device slot.", stats.loads)
        yield _counter(
            "lorry_adapter_evictions", "Adapters that gave up their slot.", stats.evictions
        )
        yield _counter("lorry_engine_steps", "Forward passes.", stats.steps)
        yield _counter("lorry_engine_failed_steps", "Steps that raised.", stats.failed_steps)

    def _adapters(self, stats: EngineStats, records: Sequence[AdapterRecord]) -> Iterator[Metric]:
        resident = set(stats.resident)
        loaded = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "Adapters in memory, by the nearest level.",
            labels=("model_name", "engine", "adapter_name", "level", "pinned", "rank"),
        )
        on_device: set[str] = set()
        enabled = 0
        for record in records:
            enabled += record.enabled
            digest = record.current.digest
            if digest in resident:
                on_device.add(record.name)
            elif not self._sources.in_host_cache(digest):
                continue
            loaded.add_metric(
                (
                    self._model_name,
                    "0",
                    record.name,
                    "gpu" if digest in resident else "cpu",
                    str(record.pinned).lower(),
                    str(record.current.rank),
                ),
                1,
            )
        yield loaded
        # Gateways read "running" as "in device memory"; a request's adapter is there too.
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters in device memory and adapters waited for; the value is the time.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        info.add_metric(
            (
                str(stats.slots_total),
                ",".join(sorted(on_device | set(stats.running_adapters))),
                ",".join(sorted(stats.waiting_adapters)),
            ),
            time.time(),
        )
        yield info
        registered = GaugeMetricFamily(
            "lorry_adapters", "Adapters registered, by state.", labels=("state",)
        )
        registered.add_metric(("enabled",), enabled)
        registered.add_metric(("disabled",), len(records) - enabled)
        yield registered


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)
