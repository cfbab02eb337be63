"""Responses that are made while no client waits for them.

A client starts one with `background: true`, asks for it until it has ended, and may cancel it.
Event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lorry.api.errors import count, message_of, row_of
from lorry.api.response_items import Item
from lorry.api.response_object import ResponseObject
from lorry.api.response_store import ResponseStore
from lorry.metrics import Metrics

logger = logging.getLogger(__name__)


class Background:
    def __init__(self, store: ResponseStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._running: dict[str, asyncio.Task[None]] = {}

    def begin(
        self,
        made: ResponseObject,
        owner: str,
        items: Sequence[Item],
        work: Callable[[], Awaitable[dict[str, Any]]],
        over: Callable[[], None],
    ) -> bool:
        """Store `made` as it is, and again when `work` has returned chat's answer or has failed;
        then call `over`. Return False, without a call of either, if it cannot be stored: nobody
        could fetch it."""
        self._store.put(owner, made.view, items)
        if not made.view["store"]:
            return False

        async def run() -> None:
            try:
                made.complete(await work())
            except asyncio.CancelledError:
                made.cancel()
            except Exception as error:
                count(error, self._metrics)
                if row_of(error).status == 500:
                    logger.exception("%s failed", key)
                made.fail(message_of(error))
            finally:
                over()
            del self._running[key]
            self._store.put(owner, made.view, items)
            usage = made.view["usage"]
            used = {"generated_tokens": usage["output_tokens"]} if usage is not None else {}
            logger.info("%s is %s", key, made.view["status"], extra=used)

        key = made.view["id"]
        self._running[key] = asyncio.ensure_future(run())
        return True

    async def stop(self, response_id: str) -> None:
        """Cancel a response that is being made, and wait until it is stored as cancelled. One that
        has ended stays as it is."""
        task = self._running.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
