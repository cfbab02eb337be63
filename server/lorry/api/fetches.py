"""Adapters that are being fetched: their progress, and the last failures. Event loop only."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lorry.api.errors import message_of
from lorry.fetch.download import Progress
from lorry_adapters.errors import AdapterConflict, UnknownAdapter
from lorry_adapters.registry.record import AdapterRecord

_FAILURES = 100
"""Failures that are remembered."""

Added = tuple[AdapterRecord, bool]


class FetchState(StrEnum):
    FETCHING = "fetching"
    VERIFYING = "verifying"


@dataclass(slots=True)
class Fetch:
    source: str
    """As it may be shown."""
    state: FetchState = FetchState.FETCHING
    progress: Progress = field(default_factory=Progress)
    task: asyncio.Task[Added] | None = None

    def view(self) -> dict[str, Any]:
        return {
            "state": self.state.value,
            "source": self.source,
            "bytes": self.progress.bytes,
            "total": self.progress.total or None,
        }


class Fetches:
    def __init__(self) -> None:
        self._fetches: dict[str, Fetch] = {}
        self._failures: OrderedDict[str, str] = OrderedDict()

    async def run(self, name: str, source: str, work: Callable[[Fetch], Awaitable[Added]]) -> Added:
        """Run `work` and wait for it. It goes on if the caller leaves.

        Raises AdapterConflict if the name is being fetched already or the fetch is cancelled, and
        what `work` raises.
        """
        if name in self._fetches:
            raise AdapterConflict(
                f"adapter {name!r} is being fetched already; wait for it, or cancel that with "
                f"DELETE /adapters/{name}"
            )
        fetch = self._fetches[name] = Fetch(source)
        self._failures.pop(name, None)
        fetch.task = asyncio.create_task(self._run(name, fetch, work))
        try:
            return await asyncio.shield(fetch.task)
        except asyncio.CancelledError:
            if not fetch.task.cancelled():
                raise
            raise AdapterConflict(f"fetching adapter {name!r} was cancelled") from None

    async def _run(
        self, name: str, fetch: Fetch, work: Callable[[Fetch], Awaitable[Added]]
    ) -> Added:
        try:
            return await work(fetch)
        except Exception as error:
            self._failures[name] = f"fetching {fetch.source} failed: {message_of(error)}"
            while len(self._failures) > _FAILURES:
                self._failures.popitem(last=False)
            raise
        finally:
            del self._fetches[name]

    def view(self, name: str) -> dict[str, Any] | None:
        """Return the progress of a fetch, or None if there is none."""
        fetch = self._fetches.get(name)
        return None if fetch is None else fetch.view()

    def explain(self, error: UnknownAdapter, name: str) -> None:
        """Add to the error that the adapter could not be fetched."""
        if name in self._failures:
            error.message += f"; {self._failures[name]}"

    async def cancel(self, name: str) -> bool:
        """Cancel a fetch. Return False if there is none that can be cancelled.

        An adapter that is being verified is not cancelled; this waits until it is registered.
        """
        fetch = self._fetches.get(name)
        if fetch is None or fetch.task is None:
            return False
        cancelled = fetch.state is FetchState.FETCHING and fetch.task.cancel()
        await asyncio.wait([fetch.task])
        return cancelled
