"""Adapters that the server fetches, on the page: progress, end, failure, and cancelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trustme
from playwright.sync_api import Page, expect

from page.conftest import Tabs
from support.browser import Tab
from support.https_server import HttpsServer, Slow, send, serve_https
from support.patience import wait_until
from support.server import Server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def origin(
    authority: trustme.CA,
    archives: Callable[[int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HttpsServer]:
    root = tmp_path_factory.mktemp("origin")
    (root / "legal.zip").write_bytes(archives(1).read_bytes())
    with serve_https(root, authority) as one:
        yield one


@pytest.fixture(scope="module")
def fetching(
    started: Callable[..., AbstractContextManager[Server]],
    authority: trustme.CA,
    origin: HttpsServer,
) -> Iterator[Server]:
    with authority.cert_pem.tempfile() as trusted:
        flags = ("--adapter-sources", f"{origin.host},127.0.0.1")
        with started(*flags, env={"SSL_CERT_FILE": trusted}) as one:
            yield one


@pytest.fixture
def slow(fetching: Server, origin: HttpsServer) -> Iterator[Slow]:
    """`/slow.zip` stops in its middle until it may go on. No adapter is left."""
    answer = origin.answers["/slow.zip"] = Slow((origin.root / "legal.zip").read_bytes())
    yield answer
    answer.go_on.set()
    for record in fetching.client.get("/adapters").json()["adapters"]:
        fetching.client.delete(f"/adapters/{record['name']}")


def ask_for(one: Tab, source: str, button: str = "Upload") -> Page:
    """Asks for it; the proposed name is the last part's."""
    shown = one.open("#/adapters")
    shown.get_by_role("button", name="From a source").click()
    shown.get_by_label("Source", exact=True).fill(source)
    shown.keyboard.press("Enter")
    shown.get_by_role("button", name=button, exact=True).click()
    return shown


def test_its_progress_and_its_end_are_shown(
    fetching: Server, origin: HttpsServer, slow: Slow, tab: Tabs
) -> None:
    one = tab(fetching)
    one.expected.append("404")
    shown = ask_for(one, f"{origin.url}/slow.zip")
    card = shown.get_by_role("listitem").filter(has_text="slow")
    expect(card).to_contain_text("The server fetches it · 50 %")
    expect(card.get_by_role("progressbar", name="Progress of slow")).to_have_attribute(
        "value", re.compile(r"0\.(49|5)")
    )
    assert one.barriers() == []
    slow.go_on.set()
    expect(card).to_contain_text("slow is there as version 1")
    expect(shown.get_by_role("table").get_by_role("link", name="slow")).to_be_visible()


def test_others_see_that_it_is_coming(
    fetching: Server, origin: HttpsServer, slow: Slow, tab: Tabs, archives: Callable[[int], Path]
) -> None:
    fetching.upload("slow", archives(2)).raise_for_status()
    first, second = tab(fetching), tab(fetching)
    ask_for(first, f"{origin.url}/slow.zip", "Add version")
    shown = second.open("#/adapters")
    row = shown.get_by_role("row").filter(has_text="slow")
    expect(row).to_contain_text("fetching")
    slow.go_on.set()
    expect(row.locator("[data-title=Version]")).to_have_text("2")
    expect(row).to_contain_text("enabled")


def test_a_cancelled_one_is_gone_and_what_was_there_stays(
    fetching: Server, origin: HttpsServer, slow: Slow, tab: Tabs, archives: Callable[[int], Path]
) -> None:
    fetching.upload("slow", archives(2)).raise_for_status()
    one = tab(fetching)
    one.expected.append("409")
    shown = ask_for(one, f"{origin.url}/slow.zip", "Add version")
    expect(shown.get_by_role("listitem").filter(has_text="50 %")).to_be_visible()
    shown.get_by_role("button", name="Cancel slow").click()
    expect(shown.get_by_role("progressbar")).to_be_hidden()
    assert shown.get_by_role("alert").count() == 0
    record = fetching.client.get("/adapters/slow").json()
    assert (record["version"], record["fetch"]) == (1, None)
    expect(shown.get_by_role("row").filter(has_text="slow")).to_contain_text("enabled")


def test_a_failure_is_told_and_can_be_tried_again(
    fetching: Server, origin: HttpsServer, slow: Slow, tab: Tabs
) -> None:
    origin.answers["/slow.zip"] = lambda handler: send(handler, 503, b"later")
    one = tab(fetching)
    one.expected += ["404", "502"]
    shown = ask_for(one, f"{origin.url}/slow.zip")
    refusal = shown.get_by_role("listitem").get_by_role("alert")
    expect(refusal).to_contain_text("503")
    assert one.barriers() == []
    origin.answers["/slow.zip"] = slow
    slow.go_on.set()
    shown.get_by_role("button", name="Try again").click()
    expect(shown.get_by_text("is there as version 1")).to_be_visible()
    wait_until(lambda: fetching.client.get("/adapters/slow").status_code == 200, "the adapter")
