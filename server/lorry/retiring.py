"""Removes versions of adapters that grow too old while nobody pushes new ones."""

from __future__ import annotations

import logging
import threading
from typing import Final

from lorry_adapters.errors import AdapterError
from lorry_adapters.registry.registry import Registry

_EVERY: Final = 600.0
"""Seconds. Ages are in days."""

_log = logging.getLogger(__name__)


class Retiring:
    """A thread that calls `Registry.retire` now and then, and at the start."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorry-retiring", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when it has ended. Call it before the registry is closed."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._registry.retire()
            except AdapterError as error:
                # The disk may be full or away; it is tried again.
                _log.warning("old versions could not be removed: %s", error.message)
            if self._stopped.wait(_EVERY):
                return
