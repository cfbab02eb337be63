"""`lorry ps`: shows what a running server serves and its current load."""

from __future__ import annotations

from typing import Any

import typer
from prometheus_client.parser import text_string_to_metric_families

from lorry.cli.output import AsJson, write_facts, write_json
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url

_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_used",
}


def register(app: typer.Typer) -> None:
    app.command("ps")(ps)


def ps(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show what a server serves and what it is doing now."""
    with Connection(url, api_key) as server:
        info = server.request("GET", "/info")
        records = server.request("GET", "/adapters")["adapters"]
        with server.stream("GET", "/metrics") as response:
            numbers = _gauges(response.read().decode())
    body: dict[str, Any] = {
        "url": url,
        **{name: info.get(name) for name in ("version", "model_id", "quantization", "device")},
        "kernels": info.get("kernels"),
        **numbers,
        "adapters": len(records),
        "adapters_on_device": sum(one["residency"] == "device" for one in records),
        "adapters_broken": [one["name"] for one in records if one["broken"] is not None],
    }
    if as_json:
        write_json(body)
        return
    used = body["kv_cache_used"]
    shown = {**body, "kv_cache_used": None if used is None else f"{100 * used:.0f} %"}
    write_facts([(name.replace("_", " "), value) for name, value in shown.items()])


def _gauges(text: str) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = dict.fromkeys(_GAUGES.values())
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _GAUGES:
                value = float(sample.value)
                found[_GAUGES[sample.name]] = int(value) if value.is_integer() else value
    return found
