"""The frame of the page: what it may load, its key, its navigation, and a server that goes away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from page.conftest import Tabs
from support.browser import PHONE
from support.server import Server

PAGES = ("playground", "adapters", "live")


def test_it_may_run_nothing_but_its_files_and_ask_nobody_else(server: Server) -> None:
    answer = server.client.get("/")
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in answer.headers["content-security-policy"].split(";")
    )
    assert answer.headers["content-type"].startswith("text/html")
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    script = server.client.get("/ui/app.js")
    assert script.headers["content-security-policy"] == answer.headers["content-security-policy"]
    assert script.headers["content-type"].startswith("text/javascript")
    etag = {"If-None-Match": script.headers["etag"]}
    assert server.client.get("/ui/app.js", headers=etag).status_code == 304


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/nothing.js", "/ui/../api/app.py", "/ui/%2e%2e/settings.py", "/ui"]
)
def test_only_its_own_files_are_there(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_such_route"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_from_using_it(server: Server, tab: Tabs, page: str, scheme: str) -> None:
    one = tab(server, color_scheme=scheme)
    shown = one.open(f"#/{page}")
    expect(shown.get_by_role("link", name=page.capitalize())).to_have_attribute(
        "aria-current", "page"
    )
    assert one.barriers() == []


@pytest.mark.parametrize("page", PAGES)
def test_it_fits_a_phone(server: Server, tab: Tabs, page: str) -> None:
    shown = tab(server, viewport=PHONE).open(f"#/{page}")
    expect(shown.get_by_role("main")).to_be_visible()
    assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_keyboard_alone_gets_to_every_page(server: Server, tab: Tabs) -> None:
    shown = tab(server).open()
    expect(shown.get_by_role("link", name="Live")).to_be_visible()
    for _ in range(10):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.textContent.trim()") == "Adapters":
            break
    shown.keyboard.press("Enter")
    expect(shown.get_by_role("link", name="Adapters")).to_have_attribute("aria-current", "page")
    assert shown.url.endswith("#/adapters")


def test_dark_is_kept(server: Server, tab: Tabs) -> None:
    shown = tab(server, color_scheme="light").open()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = shown.evaluate(ground)
    shown.get_by_label("Colours").select_option("dark")
    dark = shown.evaluate(ground)
    assert dark != light
    shown.reload()
    expect(shown.get_by_label("Colours")).to_have_value("dark")
    assert shown.evaluate(ground) == dark


def test_a_key_is_asked_for_and_kept_as_said(
    started: Callable[..., AbstractContextManager[Server]], tab: Tabs
) -> None:
    with started("--api-key", "sesame") as server:
        one = tab(server)
        one.expected.append("401")
        shown = one.open("#/adapters")
        shown.get_by_label("Key").fill("wrong")
        shown.get_by_role("button", name="Continue").click()
        expect(shown.get_by_role("alert")).to_contain_text("is not this server's")
        assert one.barriers() == []
        shown.get_by_label("Key").fill("sesame")
        shown.keyboard.press("Enter")
        expect(shown.get_by_role("link", name="Adapters")).to_have_attribute("aria-current", "page")
        shown.reload()
        expect(shown.get_by_role("link", name="Adapters")).to_be_visible()
        assert shown.evaluate("localStorage.getItem('lorry.key')") is None
        shown.get_by_role("button", name="Sign out").click()
        shown.get_by_label("Key").fill("sesame")
        shown.get_by_label("Remember it").check()
        shown.get_by_role("button", name="Continue").click()
        expect(shown.get_by_role("link", name="Adapters")).to_be_visible()
        assert shown.evaluate("localStorage.getItem('lorry.key')") == "sesame"


def test_it_works_under_a_proxy_s_prefix(
    started: Callable[..., AbstractContextManager[Server]], tab: Tabs
) -> None:
    with started("--root-path", "/llm") as server:
        one = tab(server)
        for address in ("llm", "llm/", "llm/#/live"):
            expect(one.open(address).get_by_role("link", name="Live")).to_be_visible()
        assert one.page.evaluate("document.baseURI") == f"{server.url}/llm/"
        assert f"open {server.url}/llm/ in a browser" in server.tail()


def test_off_is_off(started: Callable[..., AbstractContextManager[Server]]) -> None:
    with started("--ui", "off") as server:
        answer = server.client.get("/")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert server.client.get("/ui/app.js").status_code == 404
        assert "browser" not in server.tail()


def test_it_says_that_the_server_is_gone_and_goes_on_when_it_is_back(
    server: Server, tab: Tabs
) -> None:
    one = tab(server)
    shown = one.open("#/live")
    expect(shown.get_by_role("link", name="Live")).to_be_visible()
    one.expected.append("ERR_")
    shown.route("**/info", lambda route: route.abort())
    shown.reload()
    expect(shown.get_by_text("does not answer")).to_be_visible()
    shown.unroute("**/info")
    expect(shown.get_by_text("does not answer")).to_be_hidden()
    expect(shown.get_by_role("link", name="Live")).to_have_attribute("aria-current", "page")
