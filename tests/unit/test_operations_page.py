"""docs/operations.md explains what the code tells an operator."""

from __future__ import annotations

import re
from dataclasses import replace

from lorry.access import keyring
from lorry.access.api_key import KeyRecord
from lorry.access.audit import Action, of_adapters
from lorry_adapters.registry.record import Alias, Share, VersionRules
from support import dashboards
from support.operator_page import section
from support.version_records import record_of

LINES = section("Lines of the audit")


def test_every_alert_has_its_line() -> None:
    explained = re.findall(r"^\| `(Lorry\w+)` \|", section("Alerts"), re.MULTILINE)
    assert explained == [rule.name for rule in dashboards.rules()]


def test_every_action_of_the_audit_has_its_line() -> None:
    explained = re.findall(r"^\| (?:adapter|key) `(\w+)` \|", LINES, re.MULTILINE)
    assert set(explained) == set(Action)


def test_every_field_of_a_change_is_explained() -> None:
    before = record_of(2)
    newest = record_of(4)
    share = Share(3, 1)
    after = replace(
        newest,
        enabled=False,
        scale=2.0,
        pinned=True,
        description="d",
        current=newest.versions[2],
        versions=newest.versions[1:],
        rules=VersionRules((Alias("a", (share,)),), (share,), 3, 4.0),
    )
    detail = of_adapters(before, after).detail
    assert detail is not None and {"new_version", "removed_versions", "version"} <= set(detail)
    fields = set(detail) | set(keyring._new(KeyRecord("id", "name", frozenset()))) | {"keep_old"}
    assert {name for name in fields if f"`{name}`" not in LINES} == set()
