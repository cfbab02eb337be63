"""Adapters that are fetched when a request first names them.

The places are the operator's (`--adapter-resolvers`), and nothing else that a request says decides
what is fetched. The fetch is that of `POST /adapters`, with the same limits, and under the limits
of the caller's key. A name is looked for once at a time, and after a failure not again for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from lorry.api.adapter_header import named_by
from lorry.api.adapter_state import State
from lorry.api.adapters import Adapters
from lorry.api.errors import message_of
from lorry.api.selection import PLACEHOLDERS, BaseNames
from lorry.errors import (
    ForbiddenAdapter,
    InvalidRequest,
    KeyLimitExceeded,
    ModelNotFound,
    QueueFull,
    SourceFailed,
)
from lorry.fetch.download import AnswerRefused
from lorry.fetch.fetcher import NothingThere
from lorry.fetch.resolvers import source_for
from lorry_adapters.errors import (
    AdapterConflict,
    ForbiddenSource,
    InvalidAdapter,
    InvalidAdapterName,
    UnknownAdapter,
    UnsupportedUpload,
    UploadTooLarge,
)
from lorry_adapters.registry.names import check_name
from lorry_adapters.registry.registry import Registry

AT_ONCE: Final = 32
"""Names that are looked for at once; one more is answered 429."""

_REMEMBERED: Final = 10_000

_ABSENT: Final = (401, 403, 404, 410)
"""Statuses of a place that has no such adapter. The hub answers 401 without a token."""

_LASTING = (
    SourceFailed,
    InvalidRequest,
    ForbiddenSource,
    InvalidAdapter,
    InvalidAdapterName,
    UnsupportedUpload,
    UploadTooLarge,
)
"""Failures that are remembered. Others are this server's, or of one key."""

logger = logging.getLogger(__name__)


class _Failed(Exception):
    """The name was found, or its place could not be asked; the message says why it is not there."""


class Resolving:
    """Event loop only."""

    def __init__(
        self,
        registry: Registry,
        adapters: Adapters,
        base: BaseNames,
        resolvers: Sequence[str],
        retry: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retry`: seconds for which a failure is remembered."""
        self._registry = registry
        self._adapters = adapters
        self._base = base
        self._resolvers = tuple(resolvers)
        self._retry = retry
        self._clock = clock
        self._flights: dict[str, asyncio.Task[None]] = {}
        # By name: until when, and why; "" if no resolver has the name.
        self._failures: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def prepare(self, body: object) -> None:
        """Fetch the unknown adapters that a request's body names. A name that no resolver has is
        left to the route.

        Raises ModelNotFound or UnknownAdapter if fetching one failed, KeyLimitExceeded,
        ForbiddenAdapter, QueueFull, and the errors of this server's disk and memory.
        """
        for field, text in named_by(body):
            name = text.partition("@")[0]
            if self._is_wanted(name):
                try:
                    await self._resolve(name)
                except _Failed as error:
                    text = f"no adapter is named {name!r}, and fetching it failed: {error}"
                    if field == "model":
                        raise ModelNotFound(text) from error
                    raise UnknownAdapter(text) from error

    def _is_wanted(self, name: str) -> bool:
        if name in self._base or name in PLACEHOLDERS or not self._registry.policy.sees(name):
            return False
        try:
            check_name(name, frozenset())
            self._registry.get(name)
        except UnknownAdapter:
            return True
        except InvalidAdapterName:
            return False
        return False

    async def _resolve(self, name: str) -> None:
        while True:
            until, why = self._failures.get(name, (0.0, ""))
            if self._clock() < until:
                if why:
                    raise _Failed(why)
                return
            flight = self._flights.get(name)
            mine = flight is None
            if flight is None:
                if len(self._flights) >= AT_ONCE:
                    raise QueueFull(
                        f"{AT_ONCE} other adapters are being looked for; try again", retry_after=1
                    )
                flight = self._flights[name] = asyncio.create_task(self._look(name))
                flight.add_done_callback(lambda _: self._flights.pop(name))
            try:
                # It goes on if this caller leaves.
                await asyncio.shield(flight)
                return
            except (KeyLimitExceeded, ForbiddenAdapter):
                if mine:
                    raise
                # That was another key's limit.

    async def _look(self, name: str) -> None:
        for resolver in self._resolvers:
            source = source_for(resolver, name)
            if source is None:
                continue
            try:
                await self._adapters.add_source(name, source, State())
                logger.info("adapter %s was fetched from %s for a request", name, source)
                return
            except NothingThere:
                continue
            except AdapterConflict:
                # Somebody registers it.
                return
            except _LASTING as error:
                if isinstance(error, AnswerRefused) and error.status in _ABSENT:
                    continue
                logger.warning("adapter %s was not fetched: %s", name, message_of(error))
                self._remember(name, message_of(error))
                raise _Failed(message_of(error)) from error
        self._remember(name, "")

    def _remember(self, name: str, why: str) -> None:
        self._failures.pop(name, None)
        self._failures[name] = (self._clock() + self._retry, why)
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)
