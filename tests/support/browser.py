"""Debian's Chromium, driven by Playwright, and pages that tell all that went wrong in them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

from support.patience import PATIENCE

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",  # a container has no user namespaces, and the tests' pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


def found() -> str | None:
    """The browser's program."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=found(), args=[*_FLAGS])
        try:
            yield one
        finally:
            one.close()


@dataclass
class Tab:
    """A page and what went wrong in it."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of problems that a test provokes: Chromium logs each answer of 4xx and 5xx."""

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.on("request", self._request)

    def open(self, address: str = "") -> Page:
        """Go to an address of the page, as `#/adapters`."""
        self.page.goto(f"{self.url}/{address}")
        return self.page

    def unexpected(self) -> list[str]:
        return [one for one in self.problems if not any(part in one for part in self.expected)]

    def barriers(self) -> list[str]:
        """What axe-core finds that keeps somebody from using the page as it is now."""
        found: dict[str, Any] = Axe().run(self.page).response
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes']]}"
            for one in found["violations"]
        ]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text} {message.location.get('url', '')}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and not request.url.startswith(f"{self.url}/"):
            self.problems.append(f"a request to another origin: {request.url}")


@contextmanager
def tab(browser: Browser, url: str, **context: Any) -> Iterator[Tab]:
    """A tab in a browser's profile of its own; nothing must have gone wrong in it at the end."""
    profile = browser.new_context(**{"viewport": WIDE, **context})
    profile.set_default_timeout(PATIENCE * 1000)
    try:
        one = Tab(profile.new_page(), url)
        yield one
        problems = one.unexpected()
        assert not problems, problems
    finally:
        profile.close()
