"""The live page: its figures are the server's own, and it asks for no more than it shows."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import Page, expect

from page.conftest import Tabs
from support.browser import PHONE
from support.server import Server


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """Requests of `pirate` and of the base, one after the other."""
    stopped = threading.Event()

    def ask(adapter: str | None) -> None:
        while not stopped.is_set():
            server.generate("Ahoy there", adapter, tokens=16)

    threads = [threading.Thread(target=ask, args=(one,)) for one in ("pirate", None)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def tile(shown: Page, title: str) -> str:
    found = shown.locator("dl.tiles div", has_text=title).locator("dd").text_content()
    assert found is not None
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_what_the_server_does(server: Server, tab: Tabs, scheme: str) -> None:
    one = tab(server, color_scheme=scheme)
    with busy(server):
        shown = one.open("#/live")
        row = shown.get_by_role("row", name="pirate")
        expect(row).to_be_visible()
        # Rates and percentiles need two readings.
        expect(row).to_contain_text(re.compile(r"[1-9].*(ms|\d s) / "))
        expect(shown.get_by_role("row", name="tiny")).to_be_visible()
        chart = shown.get_by_role("img", name="Tokens a second")
        expect(chart).to_have_accessible_name(re.compile(r"generated [1-9]"))
        first = shown.get_by_role("img", name="Time to the first token")
        expect(first).to_have_accessible_name(
            re.compile(r"median [\d.]+ (ms|s), 95 % [\d.]+ (ms|s)")
        )
        assert one.barriers() == []
    assert re.fullmatch(r"\d+ of 16", tile(shown, "Running"))
    assert tile(shown, "Failed steps") == "0"
    shown.get_by_role("link", name="pirate").click()
    assert shown.url.endswith("#/adapters/pirate")


def test_it_reads_only_what_it_shows_and_nothing_while_unseen(server: Server, tab: Tabs) -> None:
    one = tab(server)
    asked: list[str] = []
    one.page.on("request", lambda request: asked.append(request.url))
    shown = one.open("#/live")

    def scrapes() -> list[str]:
        return [url for url in asked if "/metrics" in url]

    def until(more: int) -> None:
        while len(scrapes()) < more:
            shown.wait_for_timeout(20)

    until(3)
    often, long = sorted(({*map(_names, scrapes()[:3])}), key=len)
    assert set(often) < set(long)
    assert not any(name.startswith("lorry_adapter_time") for name in often)
    shown.get_by_role("link", name="Adapters").click()
    expect(shown.get_by_role("heading", name="Live")).to_be_hidden()
    server.generate("Ahoy there")
    count = len(scrapes())
    shown.get_by_role("link", name="Live").click()
    until(count + 2)


def _names(url: str) -> tuple[str, ...]:
    return tuple(value for name, value in parse_qsl(urlsplit(url).query) if name == "name[]")


def test_it_fits_a_phone(server: Server, tab: Tabs) -> None:
    one = tab(server, viewport=PHONE)
    with busy(server):
        shown = one.open("#/live")
        expect(shown.get_by_role("row", name="pirate")).to_be_visible()
        assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert one.barriers() == []


def test_a_key_that_may_not_see_all_adapters_is_told_so(
    started: Callable[..., AbstractContextManager[Server]], tab: Tabs
) -> None:
    with started("--api-key", "sesame") as server:
        made = server.client.post(
            "/keys",
            json={"name": "legal", "scopes": ["generate"], "adapters": ["legal-*"]},
            headers={"authorization": "Bearer sesame"},
        )
        one = tab(server)
        one.expected += ["401", "403"]
        shown = one.open("#/live")
        shown.get_by_label("Key").fill(made.json()["key"])
        shown.keyboard.press("Enter")
        expect(shown.get_by_role("alert")).to_contain_text("sees only some adapters")


def test_quantiles_are_those_of_what_came_since(server: Server, tab: Tabs) -> None:
    """Against hand-made buckets: 10 values up to 1, 30 more up to 2, 60 more up to 4."""
    shown = tab(server).open("#/live")
    found = shown.evaluate(
        """async () => {
            const { parsed, buckets, quantile } = await import('/ui/live/exposition.js');
            const [bounds, counts] = [['1', '2', '4', '+Inf'], [10, 40, 100, 100]];
            const text = bounds.map((le, i) =>
              `h_bucket{adapter="a\\\\"b\\\\\\\\",le="${le}"} ${counts[i]}`).join('\\n');
            const series = parsed('# HELP h x\\n' + text + '\\nx NaN\\n');
            const now = buckets(series, 'h', { adapter: 'a"b\\\\' });
            const then = [[1, 10], [2, 10], [4, 10], [Infinity, 10]];
            return [now.length, quantile(0.5, now), quantile(0.95, now), quantile(0.5, now, then),
                    quantile(0.5, now, now), buckets(series, 'h', { adapter: 'c' }).length];
        }"""
    )
    half, most = 2 + 2 * 10 / 60, 2 + 2 * 55 / 60
    assert found == [4, pytest.approx(half), pytest.approx(most), pytest.approx(2.5), None, 0]
