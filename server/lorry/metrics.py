"""The metrics for Prometheus: vLLM's names for vLLM's meanings, `lorry_` for the rest.

Requests are counted as they run, through the `RequestMeter` that `Metrics.accepted` returns.
`scrape` reads the numbers of the engine, the registry and the host cache. Labels contain only names
that the registry accepted, and a removed adapter's series are removed with it, so the number of
series is limited by the number of adapters.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

import lorry
from lorry.adapter_series import EACH, FIRST, AdapterSeries
from lorry.counters import PlainCounter, PlainHistogram
from lorry.scrape import Scrape, Sources
from lorry_adapters.registry.record import AdapterRef

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Wide enough for a laptop's CPU as well as for a GPU: seconds.
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_SPAN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_COUNT = (1, 2, 4, 8, 16, 32)


class Metrics:
    """All metrics of one server. Thread-safe, except `RequestMeter.token` (event loop only) and
    `observe_step` (engine thread only)."""

    def __init__(self, collectors: CollectorRegistry, *, base_name: str) -> None:
        self.collectors = collectors
        self.base_name = base_name
        self._adapters = AdapterSeries(collectors)
        base = {"labelnames": ("model_name", "engine"), "registry": collectors}
        self._prompt_tokens = self._own(
            Counter("vllm:prompt_tokens", "Prompt tokens accepted.", **base)  # type: ignore[arg-type]
        )
        self._queried = self._own(
            Counter(
                "vllm:prefix_cache_queries",
                "Prompt tokens looked for in the prefix cache.",
                **base,  # type: ignore[arg-type]
            )
        )
        self._hits = self._own(
            Counter(
                "vllm:prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                **base,  # type: ignore[arg-type]
            )
        )
        own = {"model_name": base_name, "engine": "0"}
        self._drafts = PlainCounter(
            "vllm:spec_decode_num_drafts",
            "Steps of requests with drafts.",
            own,
            collectors,
        )
        self._draft_tokens = PlainCounter(
            "vllm:spec_decode_num_draft_tokens", "Tokens drafted.", own, collectors
        )
        self._accepted_tokens = PlainCounter(
            "vllm:spec_decode_num_accepted_tokens",
            "Drafted tokens that were right.",
            own,
            collectors,
        )
        self._generation_tokens = PlainCounter(
            "vllm:generation_tokens", "Tokens generated.", own, collectors
        )

        def histogram(name: str, help: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(
                name, help, ("model_name", "engine"), registry=collectors, buckets=buckets
            )
            return made.labels(base_name, "0")

        self._first = histogram(
            "vllm:time_to_first_token_seconds", "Time from arrival to the first token.", FIRST
        )
        self._between = PlainHistogram(
            "vllm:inter_token_latency_seconds",
            "Time between one token and the next.",
            EACH,
            own,
            collectors,
        )
        self._per_token = histogram(
            "vllm:time_per_output_token_seconds",
            "Mean time of a request's tokens after the first.",
            EACH,
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "Time from arrival to the last token.", _WHOLE
        )
        self._queued = histogram(
            "vllm:request_queue_time_seconds", "Time from arrival to the first step.", _SPAN
        )
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds",
            "Time from the first step to the first token.",
            _SPAN,
        )
        self._decode = histogram(
            "vllm:request_decode_time_seconds", "Time from the first token to the last.", _SPAN
        )
        self._inference = histogram(
            "vllm:request_inference_time_seconds",
            "Time from the first step to the last token.",
            _SPAN,
        )
        self._prompt_length = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self._answer_length = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )
        self._asked = histogram(
            "vllm:request_params_max_tokens", "max_tokens of a request.", _TOKENS
        )
        self._answers = histogram(
            "vllm:request_params_n", "Number of answers that a request asked for.", _COUNT
        )
        self._step_tokens = PlainHistogram(
            "vllm:iteration_tokens_total", "Tokens in one forward pass.", _TOKENS, own, collectors
        )
        self._step_seconds = PlainHistogram(
            "lorry_engine_step_seconds",
            "Time of one forward pass, sampling included.",
            EACH,
            {},
            collectors,
        )
        self._finished = Counter(
            "vllm:request_success",
            "Finished requests, by reason.",
            ("model_name", "engine", "finished_reason"),
            registry=collectors,
        )
        self._refused = Counter(
            "lorry_refused_requests",
            "Requests answered with an error, by error code.",
            ("code",),
            registry=collectors,
        )

        ProcessCollector(registry=collectors)
        build = {name: version(name) for name in ("torch", "transformers")}
        build |= {"version": lorry.__version__, "python": platform.python_version()}
        Gauge(
            "lorry_build_info",
            "Versions of the server and its main packages.",
            tuple(build),
            registry=collectors,
        ).labels(**build).set(1)

    def watch(self, sources: Sources) -> None:
        """Export the numbers of `sources` at every scrape. Once per `Metrics`."""
        self.collectors.register(Scrape(self.base_name, sources))

    def accepted(
        self, refs: Sequence[AdapterRef], *, prompt_tokens: int, max_tokens: int
    ) -> RequestMeter:
        """Count a request that is in the engine. The returned meter must be updated."""
        self._prompt_tokens.inc(prompt_tokens)
        self._prompt_length.observe(prompt_tokens)
        self._asked.observe(max_tokens)
        names = tuple((ref.name, str(ref.version)) for ref in refs) or ((self.base_name, ""),)
        self._adapters.accepted(names, prompt_tokens)
        return RequestMeter(self, names, prompt_tokens)

    def answers(self, count: int) -> None:
        """Count a request for `count` answers (`n`, `best_of`)."""
        self._answers.observe(count)

    def observe_step(self, tokens: int, seconds: float) -> None:
        """Count a step of the engine. Called in its thread."""
        self._step_tokens.observe(tokens)
        self._step_seconds.observe(seconds)

    def refused(self, code: str) -> None:
        """Count a request that was answered with the error of that code."""
        self._refused.labels(code).inc()

    def forget(self, name: str, version: int | None = None) -> None:
        """Remove the series of a removed adapter or version."""
        self._adapters.forget(name, None if version is None else str(version))

    def render(self, names: Collection[str] = ()) -> bytes:
        """Return the scrape's body, or the part of it that has the series of these names
        (`lorry_ready`, `vllm:prompt_tokens_total`). Blocks, as it reads the registry."""
        if not names:
            return generate_latest(self.collectors)
        return generate_latest(self.collectors.restricted_registry(names))

    def _own(self, metric: Counter) -> Counter:
        return metric.labels(self.base_name, "0")


class RequestMeter:
    """One accepted request's clock and counters. Exactly one `finish` counts. Event loop only."""

    def __init__(
        self, metrics: Metrics, names: tuple[tuple[str, str], ...], prompt_tokens: int
    ) -> None:
        self._metrics = metrics
        self._names = names
        self._prompt_tokens = prompt_tokens
        self._start = time.monotonic()
        self._started = 0.0
        self._first = 0.0
        self._last = 0.0
        self._tokens = 0
        self._finished = False
        self.drafts = self.accepted = 0
        """Tokens drafted, and those of them that were right."""
        self.reason = ""
        """The reason of its end, once it has ended."""
        self.spend: Callable[[int], None] | None = None
        """Called at the end with the number of its tokens."""

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def first_token(self) -> float:
        """When the first token came, by `time.monotonic`."""
        assert self._tokens
        return self._first

    def searched(self, cached: int) -> None:
        """Count a prompt of which `cached` tokens were found in the prefix cache."""
        metrics = self._metrics
        metrics._queried.inc(self._prompt_tokens)
        metrics._hits.inc(cached)
        metrics._adapters.searched(self._names, self._prompt_tokens, cached)

    def drafted(self, drafts: int, accepted: int) -> None:
        """Count a step with `drafts` drafted tokens, of which `accepted` were right."""
        metrics = self._metrics
        metrics._drafts.value += 1
        metrics._draft_tokens.value += drafts
        metrics._accepted_tokens.value += accepted
        self.drafts += drafts
        self.accepted += accepted

    def token(self, started: float) -> None:
        """`started`: as in `TokenEvent`."""
        now = time.monotonic()
        metrics = self._metrics
        if self._tokens == 0:
            self._started = started
            self._first = now
            metrics._first.observe(now - self._start)
            metrics._adapters.first_token(self._names, now - self._start)
        else:
            metrics._between.observe(now - self._last)
        self._last = now
        self._tokens += 1
        metrics._generation_tokens.value += 1

    def vector(self, started: float) -> None:
        """Record a request without tokens, which has no first and last one."""
        self._started = started
        self._last = time.monotonic()

    def finish(self, reason: str) -> None:
        """`reason`: stop, length, abort or error, as in vLLM."""
        if self._finished:
            return
        self._finished = True
        self.reason = reason
        if self.spend is not None:
            self.spend(self._tokens)
        metrics = self._metrics
        now = time.monotonic()
        metrics._finished.labels(metrics.base_name, "0", reason).inc()
        metrics._whole.observe(now - self._start)
        metrics._answer_length.observe(self._tokens)
        if self._started:
            # An engine's step may begin before the client has submitted completely.
            metrics._queued.observe(max(0.0, self._started - self._start))
            metrics._inference.observe(self._last - self._started)
        if self._tokens:
            metrics._prefill.observe(self._first - self._started)
            metrics._decode.observe(self._last - self._first)
        each = None
        if self._tokens > 1:
            each = (self._last - self._first) / (self._tokens - 1)
            metrics._per_token.observe(each)
        if self.drafts:
            metrics._adapters.drafted(self._names, self.drafts, self.accepted)
        metrics._adapters.finished(self._names, reason, self._tokens, each)
