"""How long a test waits for what must come, and how it asks a server meanwhile.

No test measures a time. Its limits only catch a hang, on a machine five times slower than any
of ours and busy with something else. What a test has to outlast it asks for without end
(`ENDLESS`), what it has to meet it waits for (`wait_until`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

PATIENCE = 600.0
"""Seconds after which what should have happened has not. Below pytest's own limit."""

ENDLESS = 30_000
"""Tokens of an answer that outlasts every test, from a model made for `LONG`."""

LONG = 1 << 15


def wait_until(condition: Callable[[], object], what: str = "what must come") -> None:
    """Looks again and again; fails when it is not so after `PATIENCE`."""
    ended = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ended, f"still waiting for {what} after {PATIENCE:g} s"
        time.sleep(0.01)


def client(url: str, **more: Any) -> httpx.Client:
    """A client of a server on this machine."""
    return httpx.Client(base_url=url, **{**options(), **more})


def options() -> dict[str, Any]:
    """Of any such client. It loads no certificates, which plain HTTP has no use for: on a busy
    machine that alone takes longer than most requests."""
    return {"timeout": PATIENCE, "verify": False, "trust_env": False}
