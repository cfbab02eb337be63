"""What came of the clients' tests: read from JUnit's XML, kept in `results.json`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from clients.catalog import CLIENTS, HERE, Client

FILE = HERE / "results.json"


@dataclass(frozen=True, slots=True)
class Row:
    version: str
    ran: str
    """The day, in UTC."""
    tests: Mapping[str, str]
    """By test without `test_`: why it did not pass; empty where it did."""


def read(client: Client, junit: Path) -> Row:
    """The outcomes of one client's run. A parametrized test passes where each of its cases does."""
    tests: dict[str, str] = {}
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = case.attrib["name"].partition("[")[0].removeprefix("test_")
        tests[name] = tests.get(name) or _reason(case)
    return Row(client.version, datetime.now(UTC).date().isoformat(), tests)


def _reason(case: ET.Element) -> str:
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            said = child.attrib.get("message") or child.text or child.tag
            return said.strip().splitlines()[0]
    return ""


def renewed(rows: Mapping[str, Row], ran: Mapping[str, Row | None]) -> dict[str, Row]:
    """`rows` with the outcomes of `ran` in place of older ones.

    A run that ended before it told anything is None and leaves its client no row. A client that
    is in the catalog no more has none either.
    """
    known = [client.name for client in CLIENTS]
    found = {name: ran[name] if name in ran else rows.get(name) for name in known}
    return {name: row for name, row in found.items() if row is not None}


def load() -> dict[str, Row]:
    """By the client's name; empty where nothing has been run yet."""
    if not FILE.exists():
        return {}
    return {name: Row(**row) for name, row in json.loads(FILE.read_text()).items()}


def save(rows: Mapping[str, Row]) -> None:
    content = {name: asdict(row) for name, row in sorted(rows.items())}
    FILE.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
