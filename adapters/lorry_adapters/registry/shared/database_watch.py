"""A thread that looks at what other servers change in a shared database.

It waits for the database's messages and looks twice a second anyway, since a message can be lost
and some proxies of PostgreSQL deliver none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from lorry_adapters.errors import CatalogUnavailable
from lorry_adapters.registry.shared.database import Database

POLL: Final = 0.5
"""Seconds between two looks without a message."""

_log = logging.getLogger(__name__)


class DatabaseWatch:
    def __init__(self, database: Database, channel: str, look: Callable[[], None]) -> None:
        """Call `look` from now on. It may raise CatalogUnavailable; then it is called again."""
        self._database = database
        self._channel = channel
        self._look = look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=channel, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        lost = False
        while not self._over.is_set():
            try:
                with self._database.listening(self._channel) as listener:
                    while not self._over.is_set():
                        self._look()
                        if lost:
                            _log.info("the catalog is back")
                            lost = False
                        listener.wait(POLL)
            except CatalogUnavailable as error:
                if not lost:
                    _log.warning("%s", error.message)
                lost = True
                self._over.wait(POLL)
