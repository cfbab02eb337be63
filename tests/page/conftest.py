"""The page in a real browser, on a real server: a tiny Llama with two adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from support import browser
from support.server import Server, running

Tabs = Callable[..., browser.Tab]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One a module: while it is there, Playwright runs an event loop in this thread, and other
    tests could not run theirs."""
    if browser.found() is None:
        pytest.skip("needs Chromium: install the package chromium")
    with browser.browser() as one:
        yield one


@pytest.fixture(scope="session")
def started(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[Server]]:
    """`with started("--api-key", "k") as server`: a server with a home of its own."""

    def start(*flags: str, **options: Any) -> AbstractContextManager[Server]:
        home = tmp_path_factory.mktemp("page") / "home"
        return running(tiny_model("llama"), home, "--served-model-name", "tiny", *flags, **options)

    return start


@pytest.fixture(scope="module")
def server(
    started: Callable[..., AbstractContextManager[Server]], archives: Callable[[int], Path]
) -> Iterator[Server]:
    """`pirate` and `legal` are registered."""
    with started() as one:
        for seed, name in ((1, "pirate"), (2, "legal")):
            one.upload(name, archives(seed)).raise_for_status()
        yield one


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tabs]:
    """`tab(server)`: a tab in a profile of its own. Each must end without a problem."""
    with ExitStack() as tabs:

        def open_tab(server: Server, **context: Any) -> browser.Tab:
            return tabs.enter_context(browser.tab(chromium, server.url, **context))

        yield open_tab
