"""Every query of the dashboards and the alerts, against a real Prometheus and a real server."""

from __future__ import annotations

import math
from pathlib import Path

from monitoring.conftest import ADAPTERS, Scene
from support import dashboards
from support.patience import wait_until


def has_data(scene: Scene, expression: str) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in scene.prometheus.query(expression))


def test_every_panel_has_data(scene: Scene) -> None:
    # It has no data while nothing fires.
    wait_until(lambda: has_data(scene, 'ALERTS{alertstate="firing"}'), "an alert")
    empty = [
        f"{name}: {query}"
        for name, query in dashboards.queries()
        if not has_data(scene, dashboards.filled_in(query))
    ]
    assert empty == []


def test_variables_offer_what_is_there(scene: Scene) -> None:
    for name, metric, label in dashboards.variables():
        offered = scene.prometheus.label_values(label, dashboards.filled_in(metric))
        wanted = {"tiny", *ADAPTERS} if label == "adapter" else {scene.live.url[7:]}
        assert set(offered) == wanted, name


def test_one_adapter_can_be_chosen(scene: Scene) -> None:
    for name, query in dashboards.queries():
        if "$adapter" in query:
            chosen = dashboards.filled_in(query.replace("$adapter", "pirate"))
            found = scene.prometheus.query(chosen)
            labels = [one["metric"] for one in found]
            names = {one.get("adapter", one.get("adapter_name")) for one in labels}
            assert names == {"pirate"}, name


def test_every_alert_can_be_computed(scene: Scene) -> None:
    empty = [
        rule.name for rule in dashboards.rules() if not has_data(scene, rule.without_threshold())
    ]
    assert empty == []


def test_what_was_done_to_the_server_fires(scene: Scene) -> None:
    def firing() -> set[str]:
        return {name for name, state in scene.prometheus.alerts().items() if state == "firing"}

    wait_until(lambda: {"LorryFailedSteps", "LorryAdapterQuarantined"} <= firing(), "the alerts")
    assert "LorryNotReady" not in scene.prometheus.alerts()


def test_a_server_that_cannot_store_is_not_ready(scene: Scene, tmp_path: Path) -> None:
    home = scene.live.server.settings.home
    away = home.rename(tmp_path / "away")
    try:
        assert scene.live.http.get("/health/ready").status_code == 503
        wait_until(lambda: "LorryNotReady" in scene.prometheus.alerts(), "the alert")
    finally:
        away.rename(home)
    wait_until(lambda: "LorryNotReady" not in scene.prometheus.alerts(), "its end")
