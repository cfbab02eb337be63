"""promtool's word on the configuration, and when each alert fires."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import dashboards
from support.prometheus import CONFIG, RULES, promtool, why_not

_THRESHOLD = re.compile(r" (?:==|>) ([\d.]+)")
CASES = Path(__file__).with_name("alerts.yml")
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def cases_of(alert: str) -> list[dict[str, Any]]:
    content = yaml.safe_load(CASES.read_text())
    return [
        case
        for test in content["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert
    ]


def test_prometheus_takes_the_configuration() -> None:
    done = promtool("check", "config", "--lint-fatal", CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(dashboards.rules())} rules found" in done.stdout


def test_alerts_fire_when_they_should_and_not_before() -> None:
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_both_ways() -> None:
    for rule in dashboards.rules():
        outcomes = {bool(case["exp_alerts"]) for case in cases_of(rule.name)}
        assert outcomes == {True, False}, rule.name


def test_a_moved_threshold_is_noticed(tmp_path: Path) -> None:
    """The cases are on both sides of every threshold, and near enough."""
    text = CASES.read_text()
    (original,) = yaml.safe_load(text)["rule_files"]
    (tmp_path / "alerts.yml").write_text(text.replace(original, "rules.yml"))
    for index, rule in enumerate(dashboards.rules()):
        for threshold in _THRESHOLD.finditer(rule.expression):
            for value in ("-1", "1000"):
                content = yaml.safe_load(RULES.read_text())
                start, end = threshold.span(1)
                moved = rule.expression[:start] + value + rule.expression[end:]
                content["groups"][0]["rules"][index]["expr"] = moved
                (tmp_path / "rules.yml").write_text(yaml.safe_dump(content))
                done = promtool("test", "rules", tmp_path / "alerts.yml")
                assert done.returncode == 1, f"{rule.name}: {moved}"
                assert "FAILED" in done.stdout + done.stderr
