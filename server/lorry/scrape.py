"""Numbers that are read at every scrape instead of counted: the engine, adapters, host cache.

The names are vLLM's for vLLM's meanings, as in `metrics`. Nothing is kept between two scrapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lorry.core import EngineStats
from lorry_adapters.lora.adapter_memory import PARTS
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.store_counts import Operation, StoreCount


class CacheStats(Protocol):
    """The exported part of `lorry_adapters.registry.host_cache.HostCacheStats`."""

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
class EngineNumbers:
    """The numbers of one engine."""

    stats: EngineStats
    host_cache: CacheStats
    in_host_cache: Callable[[str], bool]
    replica: str = ""
    """Its name, if there are several."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a scrape. Called in the scrape's thread."""

    engines: Callable[[], Sequence[EngineNumbers]]
    records: Callable[[], Sequence[AdapterRecord]]
    why_broken: Callable[[str], str | None]
    ready: Callable[[], bool]
    """True if requests are accepted, as `/health/ready` answers."""
    max_num_seqs: int
    max_queue: int
    catalog_answers: Callable[[], bool | None] = lambda: None
    """None if no other server shares the catalog."""
    store: Callable[[], Mapping[Operation, StoreCount]] = dict
    """What this process has asked of the object store; empty without one."""
    adapter_limit: int = 0
    """Most bytes of all adapters in memory."""


class Scrape:
    """A custom collector: reads the sources, keeps nothing."""

    def __init__(self, model_name: str, sources: Sources) -> None:
        self._model_name = model_name
        self._sources = sources

    def describe(self) -> list[Metric]:
        """Return nothing: registration must not read an engine that does not exist yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        records = sources.records()
        yield _gauge(
            "lorry_ready", "1 if requests are accepted, as /health/ready says.", sources.ready()
        )
        yield from _in_one(
            (engine.replica, self._of_engine(engine, records)) for engine in sources.engines()
        )
        yield _gauge(
            "lorry_max_num_seqs", "Most requests in the running batch.", sources.max_num_seqs
        )
        yield _gauge(
            "lorry_max_queue",
            "Most requests that may wait; more are refused.",
            sources.max_queue,
        )
        yield from self._registered(records)
        answers = sources.catalog_answers()
        if answers is not None:
            yield _gauge(
                "lorry_catalog_up", "1 if the catalog that servers share answers.", answers
            )
        if counts := sources.store():
            yield from _of_store(counts)
        yield _gauge(
            "lorry_adapter_memory_limit_bytes",
            "Most bytes of all adapters in memory.",
            sources.adapter_limit,
        )

    def _of_engine(
        self, engine: EngineNumbers, records: Sequence[AdapterRecord]
    ) -> Iterator[Metric]:
        yield from self._engine(engine.stats)
        yield from self._adapters(engine, records)
        memory = GaugeMetricFamily(
            "lorry_adapter_memory_bytes", "Bytes of the adapters in memory.", labels=("part",)
        )
        for part in PARTS:
            memory.add_metric((part,), engine.stats.adapter_bytes.get(part, 0))
        yield memory
        cache = engine.host_cache
        yield _gauge("lorry_host_cache_adapters", "Adapters in host memory.", cache.entries)
        yield _gauge("lorry_host_cache_bytes", "Bytes of the adapters in host memory.", cache.bytes)
        yield _gauge(
            "lorry_host_cache_capacity_bytes",
            "Most bytes that adapters may take in host memory.",
            cache.capacity_bytes,
        )
        yield _counter("lorry_host_cache_hits", "Adapters found in host memory.", cache.hits)
        yield _counter("lorry_host_cache_misses", "Adapters loaded from disk.", cache.misses)
        yield _counter(
            "lorry_host_cache_evictions", "Adapters dropped from host memory.", cache.evictions
        )

    def _engine(self, stats: EngineStats) -> Iterator[Metric]:
        used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        gauges = (
            ("vllm:num_requests_running", "Requests in the running batch.", stats.running),
            ("vllm:num_requests_waiting", "Requests that wait to run.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, from 0 to 1.", used),
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
            "Times that a request gave up its KV cache, to compute it again later.",
            labels=("model_name", "engine"),
        )
        preemptions.add_metric((self._model_name, "0"), stats.preemptions)
        yield preemptions
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Shape of the KV cache.",
            labels=("model_name", "engine", "block_size", "num_gpu_blocks"),
        )
        config.add_metric(
            (self._model_name, "0", str(stats.kv_block_size), str(stats.kv_blocks_total)), 1
        )
        yield config
        yield _gauge(
            "lorry_prefix_cache_tokens",
            "Tokens in the KV cache that a prompt which begins like them would not compute.",
            stats.kv_blocks_cached * stats.kv_block_size,
        )
        yield _gauge("lorry_slots", "Device slots for adapters.", stats.slots_total)
        yield _gauge("lorry_slots_used", "Device slots that hold an adapter.", len(stats.resident))
        yield _counter("lorry_adapter_loads", "Adapters copied to a device slot.", stats.loads)
        yield _counter(
            "lorry_adapter_evictions", "Adapters evicted from a device slot.", stats.evictions
        )
        yield _counter("lorry_engine_steps", "Forward passes (steps) run.", stats.steps)
        yield _counter("lorry_engine_failed_steps", "Steps that raised.", stats.failed_steps)

    def _adapters(
        self, engine: EngineNumbers, records: Sequence[AdapterRecord]
    ) -> Iterator[Metric]:
        stats = engine.stats
        resident = set(stats.resident)
        loaded = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "Adapters in memory, by the level nearest to the device.",
            labels=("model_name", "engine", "adapter_name", "level", "pinned", "rank"),
        )
        on_device: set[str] = set()
        for record in records:
            digest = record.current.digest
            if digest in resident:
                on_device.add(record.name)
            elif not engine.in_host_cache(digest):
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
            "Adapters in device memory and adapters that requests wait for; the value is the time.",
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

    def _registered(self, records: Sequence[AdapterRecord]) -> Iterator[Metric]:
        enabled = sum(record.enabled for record in records)
        registered = GaugeMetricFamily(
            "lorry_adapters", "Adapters registered, by state.", labels=("state",)
        )
        registered.add_metric(("enabled",), enabled)
        registered.add_metric(("disabled",), len(records) - enabled)
        yield registered
        broken = sum(self._sources.why_broken(one.current.digest) is not None for one in records)
        yield _gauge("lorry_adapters_broken", "Adapters that cannot be served.", broken)


def _of_store(counts: Mapping[Operation, StoreCount]) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "lorry_store_operations",
        "Calls of the object store, by operation and outcome.",
        labels=("operation", "outcome"),
    )
    seconds = CounterMetricFamily(
        "lorry_store_operation_seconds",
        "Time of the calls of the object store, failed ones included.",
        labels=("operation",),
    )
    moved = CounterMetricFamily(
        "lorry_store_bytes",
        "Bytes read from and written to the object store.",
        labels=("operation",),
    )
    for operation, count in counts.items():
        calls.add_metric((operation, "ok"), count.ok)
        calls.add_metric((operation, "failed"), count.failed)
        seconds.add_metric((operation,), count.seconds)
    for operation in (Operation.READ, Operation.WRITE):
        moved.add_metric((operation,), counts[operation].bytes)
    yield from (calls, seconds, moved)


def _in_one(engines: Iterable[tuple[str, Iterable[Metric]]]) -> Iterator[Metric]:
    """The metrics of engines, each sample with its engine's name as `replica` unless that is
    empty."""
    families: dict[str, Metric] = {}
    for replica, metrics in engines:
        for metric in metrics:
            if replica:
                metric.samples = [
                    sample._replace(labels={**sample.labels, "replica": replica})
                    for sample in metric.samples
                ]
            if metric.name in families:
                families[metric.name].samples += metric.samples
            else:
                families[metric.name] = metric
    yield from families.values()


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)
