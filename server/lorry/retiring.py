"""Removes what grows too old while nobody changes anything: versions of adapters, and entries of
the audit."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Final

from lorry.access.audit import Audit
from lorry_adapters.errors import AdapterError
from lorry_adapters.registry.registry import Registry

_EVERY: Final = 600.0
"""Seconds. Ages are in days."""

_log = logging.getLogger(__name__)


class Retiring:
    """A thread that calls `Registry.retire` now and then, and at the start."""

    def __init__(self, registry: Registry, audit: Audit, audit_days: float) -> None:
        """`audit_days`: how long the audit is kept; 0 is for ever."""
        self._registry = registry
        self._audit = audit
        self._audit_days = audit_days
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
            # The disk may be full or away; it is tried again.
            try:
                self._registry.retire()
            except AdapterError as error:
                _log.warning("old versions could not be removed: %s", error.message)
            try:
                if self._audit_days:
                    self._audit.shorten(timedelta(days=self._audit_days))
            except AdapterError as error:
                _log.warning("the audit could not be shortened: %s", error.message)
            if self._stopped.wait(_EVERY):
                return
