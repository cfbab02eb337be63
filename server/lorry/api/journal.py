"""One log line per request: the route, its adapters, the number of tokens, the time, and the reason
of a refusal.

It contains no part of a prompt, an answer or a query. Successful health checks, scrapes and
requests for the page's files are logged at `debug` only.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorry.access import caller
from lorry.api import page
from lorry.metrics import RequestMeter
from lorry_adapters.registry.record import AdapterRef

logger = logging.getLogger("lorry.requests")

QUIET: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/ping"})

_LONGEST: Final = 300


@dataclass(slots=True)
class Entry:
    """What is known of one request so far."""

    refs: tuple[AdapterRef, ...] = ()
    prompt_tokens: int | None = None
    meters: tuple[RequestMeter, ...] = ()
    code: str | None = None
    reason: str = ""

    def fields(self) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.refs:
            found["adapters"] = ",".join(f"{ref.name}@{ref.version}" for ref in self.refs)
        if self.prompt_tokens is not None:
            found["prompt_tokens"] = self.prompt_tokens
            found["generated_tokens"] = sum(meter.tokens for meter in self.meters)
            reasons = {meter.reason for meter in self.meters} - {""}
            if reasons:
                found["finish"] = ",".join(sorted(reasons))
        if self.code is not None:
            found["error"] = self.code
            found["reason"] = self.reason
        return found


_ENTRY: ContextVar[Entry | None] = ContextVar("entry", default=None)
"""The entry of the current task's request. The code that runs requests knows no HTTP."""


class Journal:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        entry = Entry()
        # Never reset: the web server gives each request its own task.
        _ENTRY.set(entry)
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            # It is answered outside all middleware, and its traceback is logged there.
            refused("internal_error", "the server failed")
            raise
        finally:
            _write(scope, status, began, entry)


def ran(refs: tuple[AdapterRef, ...], prompt_tokens: int, meters: Sequence[RequestMeter]) -> None:
    """Note that the current request is in the engine."""
    entry = _ENTRY.get()
    if entry is not None:
        entry.refs, entry.prompt_tokens, entry.meters = refs, prompt_tokens, tuple(meters)


def refused(code: str, message: str) -> None:
    """Note that the current request is answered with an error, or that its stream ends in one."""
    entry = _ENTRY.get()
    if entry is not None:
        # The rest of the message repeats the client's value, which may be a piece of a prompt.
        told = re.sub(r", not .*?(?=; |$)", "", message, flags=re.DOTALL)
        entry.code, entry.reason = code, told[:_LONGEST]


def _write(scope: Scope, status: int, began: float, entry: Entry) -> None:
    path = scope["path"]
    level = logging.INFO
    if status >= 500:
        level = logging.WARNING
    elif status < 400 and (path in QUIET or page.is_open(scope["method"], path)):
        level = logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {"status": status, **entry.fields()}
    firsts = [meter.first_token for meter in entry.meters if meter.tokens]
    if firsts:
        fields["first_token_s"] = round(min(firsts) - began, 4)
    fields["total_s"] = round(time.monotonic() - began, 4)
    route = getattr(scope.get("route"), "path_format", path)
    if route != path:
        fields["route"] = route
    if scope.get("client"):
        fields["client"] = scope["client"][0]
    who = caller.current()
    if who is not None and who.key.name:
        fields["key"] = who.key.name
    logger.log(level, "%s %s", scope["method"], path[:200], extra=fields)
