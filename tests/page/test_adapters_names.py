"""Aliases and trials of versions on the page of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from page.conftest import Tabs
from support.patience import wait_until
from support.server import Server


@pytest.fixture
def fiddler(
    server: Server, archives: Callable[[int], Path]
) -> Iterator[Callable[[], dict[str, object]]]:
    """Returns the record of an adapter with two versions."""
    for seed in (1, 2):
        server.upload("fiddler", archives(seed), replace="true").raise_for_status()
    yield lambda: dict(server.client.get("/adapters/fiddler").json())
    server.client.delete("/adapters/fiddler")


def test_an_alias_is_set_moved_and_removed(
    server: Server, tab: Tabs, fiddler: Callable[[], dict[str, object]]
) -> None:
    one = tab(server)
    shown = one.open("#/adapters/fiddler")
    shown.get_by_label("New alias", exact=True).fill("fiddler@prod")
    shown.get_by_role("button", name="Set").click()
    meaning = shown.get_by_label("Version that fiddler@prod means")
    expect(meaning).to_have_value("2")
    meaning.select_option("1")
    wait_until(lambda: fiddler()["aliases"] == {"fiddler@prod": 1}, "the move")
    assert one.barriers() == []
    one.expected.append("422")
    shown.get_by_label("New alias", exact=True).fill("no good name")
    shown.get_by_role("button", name="Set").click()
    expect(shown.get_by_role("alert")).to_contain_text("no good name")
    shown.get_by_role("button", name="Remove the alias fiddler@prod").click()
    expect(meaning).to_be_hidden()
    assert fiddler()["aliases"] == {}


def test_a_trial_is_started_withdrawn_and_promoted(
    server: Server, tab: Tabs, fiddler: Callable[[], dict[str, object]]
) -> None:
    one = tab(server)
    shown = one.open("#/adapters/fiddler")
    shown.get_by_label("Percent of the requests").fill("30")
    start = shown.get_by_role("button", name="Start")
    start.click()
    expect(shown.get_by_text("30 %")).to_be_visible()
    assert (fiddler()["split"], fiddler()["version"]) == ({"2": 70, "1": 30}, 2)
    assert one.barriers() == []
    shown.get_by_role("button", name="Withdraw").click()
    expect(start).to_be_visible()
    assert (fiddler()["split"], fiddler()["version"]) == ({}, 2)
    start.click()
    shown.get_by_role("button", name="Promote 1").click()
    expect(start).to_be_visible()
    assert (fiddler()["split"], fiddler()["version"]) == ({}, 1)
