"""A server under load, and a Prometheus that scrapes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support.patience import wait_until
from support.poison import Poison, plant, take_away
from support.prometheus import Prometheus, why_not

PROMPT = "one two three four five six seven eight, one two three four five six"
ADAPTERS = ("pirate", "legal", "ill", "broken")


@dataclass(frozen=True, slots=True)
class Scene:
    live: Live
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
    zip_of: Callable[[Path], Path],
) -> Iterator[Scene]:
    """More adapters than slots, more requests than places, an adapter whose requests fail, and
    one that is quarantined."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    settings = Settings(
        model=str(tiny_model("llama")),
        served_model_name="tiny",
        home=tmp_path_factory.mktemp("home"),
        store=f"file://{tmp_path_factory.mktemp('store')}",
        device="cpu",
        dtype="float32",
        quantize="none",
        samples=False,
        kv_cache_memory=4 << 20,
        host_cache_memory=64 << 20,
        max_loras=2,
        max_num_seqs=2,
        max_queue=3,
    )
    archives = [zip_of(peft_adapter("llama", "plain", seed=seed)) for seed in range(len(ADAPTERS))]
    with serve(settings) as live:
        assert live.server.core is not None
        plant(live.server.core)
        prometheus = Prometheus(
            tmp_path_factory.mktemp("prometheus"), live.url.removeprefix("http://")
        )
        try:
            # A counter that appears has no rate yet: everything happens once more.
            for _ in range(2):
                for name, archive in zip(ADAPTERS, archives, strict=True):
                    live.upload(name, archive).raise_for_status()
                _load(live)
                _catch_up(live, prometheus)
            yield Scene(live, prometheus)
        finally:
            prometheus.stop()


def _load(live: Live) -> None:
    for adapter in (None, *ADAPTERS, *ADAPTERS):
        assert _ask(live, adapter) == 200
    with ThreadPoolExecutor(12) as pool:
        statuses = set(pool.map(lambda _: _ask(live, "pirate"), range(12)))
    assert statuses == {200, 429}
    for adapter, gives_nan, status in (("ill", True, 500), ("broken", False, 422)):
        digest = live.http.get(f"/adapters/{adapter}").json()["digest"]
        Poison(digest, gives_nan=gives_nan).give(live.server.settings.home)
        assert _ask(live, adapter) == status
        take_away(live.server.settings.home)


def _ask(live: Live, adapter: str | None) -> int:
    # With such a penalty an answer ends in a loop, and is drafted.
    parameters: dict[str, Any] = {"frequency_penalty": -2.0, "speculative": True}
    parameters |= {"max_new_tokens": 60, "ignore_eos_token": True}
    body = {"inputs": PROMPT, "adapter": adapter, "parameters": parameters}
    return live.http.post("/generate", json=body).status_code


def _catch_up(live: Live, prometheus: Prometheus) -> None:
    """Wait until all that the server has counted was scraped."""
    counted = live.metric("vllm:request_success_total", finished_reason="length")

    def scraped() -> bool:
        found = prometheus.query('vllm:request_success_total{finished_reason="length"}')
        return bool(found) and float(found[0]["value"][1]) >= counted

    wait_until(scraped, "a scrape")
