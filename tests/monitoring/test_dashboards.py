"""What dashboards, alerts and Grafana's provisioning name is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from lorry.cli import build_app
from lorry.settings import options
from support import dashboards, readme
from support.prometheus import ROOT

GRAFANA = ROOT / "docker/grafana"
OTHERS = {"up", "ALERTS"}
"""Prometheus' own."""


def provisioning(name: str) -> dict[str, Any]:
    content = yaml.safe_load((GRAFANA / name).read_text())
    assert isinstance(content, dict)
    return content


def exported() -> set[str]:
    """Every name that a query can have."""
    names = set()
    for family in readme.families():
        names |= {sample.name for sample in family.samples}
    return {name for name in names if not name.endswith("_created")}


def test_every_metric_is_one_of_the_server() -> None:
    wanted: dict[str, set[str]] = {}
    for where, query in dashboards.queries():
        wanted[where] = dashboards.metrics_of(query)
    for where, metric, _ in dashboards.variables():
        wanted[where] = dashboards.metrics_of(metric)
    for rule in dashboards.rules():
        wanted[rule.name] = dashboards.metrics_of(rule.expression)
    assert all(wanted.values()), "a query without a metric"
    known = exported() | OTHERS
    assert {where: names - known for where, names in wanted.items() if names - known} == {}


def test_most_metrics_are_on_a_dashboard() -> None:
    shown = set().union(*(dashboards.metrics_of(query) for _, query in dashboards.queries()))
    # They say nothing new, or belong to a shared catalog.
    left = {
        "lorry_catalog_up",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
        "vllm:lora_requests_info",
        "vllm:max_gpu_lora_adapters",
        "vllm:num_gpu_loaded_lora_adapters",
        "vllm:request_inference_time_seconds",
        "vllm:spec_decode_num_drafts_total",
    }
    for family in readme.families():
        names = {sample.name for sample in family.samples}
        assert names & shown or names & left or family.name in left, family.name


@pytest.mark.parametrize("file", dashboards.FILES, ids=lambda file: file.stem)
def test_a_dashboard_is_as_grafana_wants_it(file: Path) -> None:
    board = dashboards.load(file)
    assert board["uid"] == f"lorry-{file.stem}"
    assert board["schemaVersion"] == 42
    assert board["tags"] == ["lorry"]
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert {"datasource", "instance"} <= names
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        title = panel["title"]
        assert panel["type"] in {"timeseries", "stat", "table"}, title
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert len(panel["description"].split()) >= 8, title
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, title
        taken |= cells
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
            assert used <= names | {"__rate_interval", "__range"}, title
            # A window of a fixed length misses what happens between two points of a long range.
            assert not re.search(r"\[\d", target["expr"]), title
            assert "instance" in used or "ALERTS" in target["expr"], title


def test_dashboards_are_told_apart() -> None:
    boards = [dashboards.load(file) for file in dashboards.FILES]
    assert [file.stem for file in dashboards.FILES] == [
        "adapters",
        "capacity",
        "engine",
        "overview",
    ]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == 4
    assert "adapter" in {one["name"] for one in boards[0]["templating"]["list"]}


def test_advice_names_settings_and_commands_that_exist() -> None:
    flags = {option.flag for option in options()}
    commands = get_command(build_app())
    advice = {name: panel["description"] for name, panel in dashboards.panels()}
    advice |= {rule.name: str(rule.content["annotations"]) for rule in dashboards.rules()}
    for name, text in advice.items():
        assert set(re.findall(r"--[a-z-]+", text)) <= flags, name
        for words in re.findall(r"\blorry ([a-z]+)(?: ([a-z]+))?", text):
            command: Any = commands
            for word in filter(None, words):
                found = getattr(command, "commands", {})
                assert not found or word in found, f"{name}: lorry {' '.join(words)}"
                command = found.get(word)


def test_provisioning_leads_to_files_that_are_mounted() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    grafana = compose["grafana"]
    inside = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])
    (provider,) = provisioning("providers/lorry.yaml")["providers"]
    assert inside[provider["options"]["path"]] == "./grafana/dashboards"
    assert inside["/etc/grafana/provisioning/dashboards"] == "./grafana/providers"
    assert inside["/etc/grafana/provisioning/datasources"] == "./grafana/datasources"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    assert (ROOT / "docker" / inside[folder] / name).is_file()
    (source,) = provisioning("datasources/prometheus.yaml")["datasources"]
    ports = {port.split(":")[-1] for port in compose["prometheus"]["ports"]}
    assert source["url"] in {f"http://prometheus:{port}" for port in ports}
    scraped = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]


def test_grafana_comes_only_when_it_is_asked_for() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert [name for name, one in compose.items() if "profiles" in one] == ["grafana"]
    assert compose["grafana"]["profiles"] == ["monitoring"]
    # It asks nobody who they are.
    assert all(port.startswith("127.0.0.1:") for port in compose["grafana"]["ports"])


def test_the_documentation_explains_every_dashboard() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    for file in dashboards.FILES:
        assert f"| {file.stem} |" in text
