"""Metrics: what is counted, and what goes away with an adapter."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from lorry.core import EngineStats
from lorry.counters import PlainCounter, PlainHistogram
from lorry.metrics import Metrics
from lorry.scrape import EngineNumbers, Sources
from lorry_adapters.registry.host_cache import HostCacheStats
from lorry_adapters.registry.record import AdapterRecord, AdapterRef, VersionRecord
from lorry_adapters.registry.store_counts import Operation, StoreCounts

LEGAL = AdapterRef("legal", 1, "sha256:" + "a" * 64, 1.0)
NEWER = AdapterRef("legal", 2, "sha256:" + "b" * 64, 1.0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), base_name="base")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.collectors.get_sample_value(name, labels)


def series(metrics: Metrics, adapter: str) -> set[tuple[str, str]]:
    return {
        (family.name, sample.labels["version"])
        for family in metrics.collectors.collect()
        for sample in family.samples
        if sample.labels.get("adapter") == adapter
    }


def run(metrics: Metrics, *refs: AdapterRef, tokens: int = 3, reason: str = "stop") -> None:
    meter = metrics.accepted(refs, prompt_tokens=5, max_tokens=10)
    for _ in range(tokens):
        meter.token(1.0)
    meter.finish(reason)


def test_a_request_counts_once(metrics: Metrics) -> None:
    meter = metrics.accepted((), prompt_tokens=5, max_tokens=10)
    meter.token(1.0)
    meter.finish("length")
    meter.finish("abort")
    done = {"model_name": "base", "engine": "0"}
    assert value(metrics, "vllm:request_success_total", finished_reason="length", **done) == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="abort", **done) is None
    # One token has a first and no pace.
    assert value(metrics, "vllm:time_to_first_token_seconds_count", **done) == 1
    assert value(metrics, "vllm:time_per_output_token_seconds_count", **done) == 0


def test_the_parts_of_a_request_are_told(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 13.0, 14.0, 15.0])
    monkeypatch.setattr("lorry.metrics.time", SimpleNamespace(monotonic=lambda: next(clock)))
    meter = metrics.accepted((), prompt_tokens=5, max_tokens=10)
    for _ in range(3):
        meter.token(12.0)
    meter.finish("stop")
    done = {"model_name": "base", "engine": "0"}
    spent = {"queue": 2.0, "prefill": 0.5, "decode": 1.5, "inference": 2.0}
    for part, seconds in spent.items():
        name = f"vllm:request_{part}_time_seconds"
        assert value(metrics, f"{name}_count", **done) == 1
        assert value(metrics, f"{name}_sum", **done) == pytest.approx(seconds), part


def test_a_request_that_never_ran_has_no_parts(metrics: Metrics) -> None:
    metrics.accepted((), prompt_tokens=5, max_tokens=10).finish("abort")
    vector = metrics.accepted((), prompt_tokens=5, max_tokens=0)
    vector.vector(1.0)
    vector.finish("stop")
    done = {"model_name": "base", "engine": "0"}
    for part, count in (("queue", 1), ("inference", 1), ("prefill", 0), ("decode", 0)):
        name = f"vllm:request_{part}_time_seconds_count"
        assert value(metrics, name, **done) == count, part


def test_the_build_and_the_process_are_told(metrics: Metrics) -> None:
    text = metrics.render().decode()
    assert re.search(r'^lorry_build_info\{.*version="\d.*"\} 1\.0$', text, re.MULTILINE)
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.MULTILINE)
    assert re.search(r"^process_open_fds [1-9]", text, re.MULTILINE)


def test_errors_are_counted_for_their_adapter(metrics: Metrics) -> None:
    run(metrics, LEGAL)
    run(metrics, LEGAL, tokens=0, reason="error")
    labels = {"adapter": "legal", "version": "1"}
    assert value(metrics, "lorry_adapter_errors_total", **labels) == 1
    assert value(metrics, "lorry_adapter_requests_total", finished_reason="error", **labels) == 1
    assert value(metrics, "lorry_adapter_generated_tokens_total", **labels) == 3


def test_a_removed_adapter_takes_its_series_along(metrics: Metrics) -> None:
    run(metrics, LEGAL)
    run(metrics, NEWER, reason="length")
    run(metrics, AdapterRef("other", 1, "sha256:" + "c" * 64, 1.0))
    metrics.forget("legal", 1)
    assert {version for _, version in series(metrics, "legal")} == {"2"}
    metrics.forget("legal")
    assert series(metrics, "legal") == set()
    assert series(metrics, "other")
    metrics.forget("nobody")


def test_a_request_that_outlives_its_adapter_does_not_bring_it_back(metrics: Metrics) -> None:
    meter = metrics.accepted((LEGAL,), prompt_tokens=5, max_tokens=10)
    metrics.forget("legal")
    meter.token(1.0)
    meter.token(1.0)
    meter.finish("stop")
    assert series(metrics, "legal") == set()
    run(metrics, LEGAL)
    assert series(metrics, "legal")


def record(name: str, digest: str, *, enabled: bool = True) -> AdapterRecord:
    now = datetime.now(UTC)
    version = VersionRecord(1, digest, "LORA", 8, ("q_proj",), 10, 20, None, now)
    return AdapterRecord(name, enabled, 1.0, True, "", version, (version,), now, now)


def test_a_scrape_asks_the_sources(metrics: Metrics) -> None:
    stats = EngineStats()
    metrics.watch(
        Sources(
            engines=lambda: [
                EngineNumbers(
                    stats,
                    HostCacheStats(1, 2, 3, 4, 5, 6),
                    in_host_cache=lambda digest: digest in ("d1", "d2"),
                )
            ],
            records=lambda: (
                record("on-device", "d1"),
                record("in-host", "d2", enabled=False),
                record("on-disk", "d3"),
            ),
            why_broken=lambda digest: "odd" if digest == "d2" else None,
            ready=lambda: stats.running == 0,
            max_num_seqs=16,
            max_queue=256,
        )
    )
    # Nothing yet: no division by the blocks that are not there.
    assert value(metrics, "vllm:kv_cache_usage_perc", model_name="base", engine="0") == 0
    assert value(metrics, "lorry_ready") == 1
    stats = EngineStats(
        running=2,
        waiting=3,
        kv_blocks_used=1,
        kv_blocks_total=4,
        kv_block_size=16,
        slots_total=8,
        resident=("d1",),
        running_adapters=("busy",),
        waiting_adapters=("z", "y"),
        loads=7,
    )
    engine = {"model_name": "base", "engine": "0"}
    assert value(metrics, "vllm:num_requests_running", **engine) == 2
    assert value(metrics, "vllm:num_requests_waiting", **engine) == 3
    assert value(metrics, "vllm:kv_cache_usage_perc", **engine) == 0.25
    labels = {"block_size": "16", "num_gpu_blocks": "4"}
    assert value(metrics, "vllm:cache_config_info", **engine, **labels) == 1
    info = {"max_lora": "8", "running_lora_adapters": "busy,on-device"}
    assert value(metrics, "vllm:lora_requests_info", waiting_lora_adapters="y,z", **info)
    for name, level in (("on-device", "gpu"), ("in-host", "cpu")):
        labels = {"adapter_name": name, "level": level, "pinned": "true", "rank": "8"}
        assert value(metrics, "vllm:lora_adapter_loaded", **engine, **labels) == 1
    assert value(metrics, "lorry_adapters", state="enabled") == 2
    assert value(metrics, "lorry_adapters", state="disabled") == 1
    assert value(metrics, "lorry_adapters_broken") == 1
    assert value(metrics, "lorry_ready") == 0
    assert value(metrics, "lorry_max_num_seqs") == 16
    assert value(metrics, "lorry_max_queue") == 256
    assert value(metrics, "lorry_adapter_loads_total") == 7
    assert value(metrics, "lorry_host_cache_capacity_bytes") == 3
    assert value(metrics, "lorry_host_cache_misses_total") == 5
    assert b"# TYPE vllm:num_requests_running gauge" in metrics.render()


def test_a_scrape_tells_what_the_store_was_asked(metrics: Metrics) -> None:
    counts = StoreCounts()
    with counts.counting(Operation.READ) as call:
        call.bytes = 7
    with pytest.raises(ValueError, match="away"), counts.counting(Operation.READ):
        raise ValueError("away")
    with counts.counting(Operation.WRITE) as call:
        call.bytes = 9
    seconds = counts.now()[Operation.READ].seconds
    metrics.watch(sources(store=counts.now))
    name = "lorry_store_operations_total"
    assert value(metrics, name, operation="read", outcome="ok") == 1
    assert value(metrics, name, operation="read", outcome="failed") == 1
    assert value(metrics, name, operation="write", outcome="failed") == 0
    assert value(metrics, name, operation="list", outcome="ok") == 0
    assert value(metrics, "lorry_store_operation_seconds_total", operation="read") == seconds > 0
    assert value(metrics, "lorry_store_bytes_total", operation="read") == 7
    assert value(metrics, "lorry_store_bytes_total", operation="write") == 9
    assert value(metrics, "lorry_store_bytes_total", operation="list") is None


def test_without_a_store_a_scrape_tells_nothing_of_one(metrics: Metrics) -> None:
    metrics.watch(sources())
    assert b"lorry_ready" in metrics.render() and b"lorry_store" not in metrics.render()


def sources(**more: Any) -> Sources:
    return Sources(
        engines=list,
        records=tuple,
        why_broken=lambda digest: None,
        ready=lambda: True,
        max_num_seqs=1,
        max_queue=1,
        **more,
    )


def test_what_every_token_counts_looks_as_prometheus_would_have_it() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    labels = {"model_name": "base", "engine": "0"}
    buckets = (0.005, 1, 2.5)
    tally = PlainHistogram("vllm:pace_seconds", "Pace.", buckets, labels, ours)
    bare = PlainHistogram("steps_total", "Steps.", (1, 2), {}, ours)
    count = PlainCounter("vllm:tokens", "Tokens.", labels, ours)
    histogram = Histogram("vllm:pace_seconds", "Pace.", labels, registry=theirs, buckets=buckets)
    bare_histogram = Histogram("steps_total", "Steps.", registry=theirs, buckets=(1, 2))
    counter = Counter("vllm:tokens", "Tokens.", labels, registry=theirs)
    counter.labels(**labels).inc(7)
    count.value += 7
    for value in (0.001, 0.005, 0.0051, 1, 3, 100):
        tally.observe(value)
        histogram.labels(**labels).observe(value)
        bare.observe(value)
        bare_histogram.observe(value)

    def scraped(registry: CollectorRegistry) -> list[str]:
        # But for the moment at which each was made.
        lines = generate_latest(registry).decode().splitlines()
        return sorted(line for line in lines if not re.match(r"[^#].*_created", line))

    assert scraped(ours) == scraped(theirs)
    assert ours.get_sample_value("vllm:pace_seconds_created", labels)
    with pytest.raises(ValueError, match="Duplicated"):
        PlainCounter("vllm:tokens", "Again.", labels, ours)
