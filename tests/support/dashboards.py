"""Grafana's dashboards of docker/grafana: their panels, and queries as Grafana would send them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.prometheus import ROOT, RULES

FOLDER = ROOT / "docker/grafana/dashboards"
FILES = sorted(FOLDER.glob("*.json"))

_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_VALUES = {"instance": ".*", "adapter": ".*", "__rate_interval": "1h", "__range": "1h"}
"""Longer than any test: all that was scraped counts."""
_COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) ")
_WINDOW = re.compile(r"\[\d+[smh]\]")
_NOT_A_NAME = re.compile(
    r'"[^"]*"|\[[^\]]*\]|\b(?:by|on|ignoring|group_left|group_right) ?\([^)]*\)|\{[^}]*\}'
)
_NAME = re.compile(r"[a-zA-Z_:][\w:]*")
_WORDS = {"and", "or", "unless", "by", "on", "without", "bool", "offset"}


@dataclass(frozen=True, slots=True)
class Rule:
    """An alert of docker/prometheus/rules.yml."""

    name: str
    expression: str
    content: dict[str, Any]

    def without_threshold(self) -> str:
        """Its comparisons return 0 or 1 for everything that they compare, over all that was
        scraped."""
        return _WINDOW.sub("[1h]", _COMPARISON.sub(r" \1 bool ", self.expression))


def load(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    assert isinstance(content, dict)
    return content


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel, with the name of its dashboard and its own."""
    for file in FILES:
        for panel in load(file)["panels"]:
            yield f"{file.stem}: {panel['title']}", panel


def queries() -> Iterator[tuple[str, str]]:
    """Every query of a panel, with the panel's name."""
    for name, panel in panels():
        for target in panel["targets"]:
            yield f"{name} {target['refId']}", target["expr"]


def variables() -> Iterator[tuple[str, str, str]]:
    """Every variable that has a query: its name, the metric with its labels, and the label."""
    for file in FILES:
        for variable in load(file)["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert found is not None, variable
                yield f"{file.stem}: {variable['name']}", found.group(1), found.group(2)


def filled_in(query: str) -> str:
    """What Grafana sends when "All" is chosen."""
    return _VARIABLE.sub(lambda found: _VALUES[found.group(1)], query)


def rules() -> list[Rule]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return [Rule(rule["alert"], rule["expr"], rule) for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """The names of metrics in a query."""
    bare = _NOT_A_NAME.sub(" ", expression)
    return {
        found.group()
        for found in _NAME.finditer(bare)
        if found.group() not in _WORDS and not bare[found.end() :].lstrip().startswith("(")
    }
