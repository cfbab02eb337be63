"""Keys, quotas and the audit of one server, over the database in its home folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lorry.access.access_database import FILE, AccessDatabase, AccessFile, SharedAccess
from lorry.access.access_policy import AccessPolicy
from lorry.access.audit import Audit
from lorry.access.keyring import Keyring
from lorry.access.quota import Quotas
from lorry_adapters.registry.registry import Registry


class AccessControl:
    """`policy` is for the registry, which must exist before `open`: it locks the home folder."""

    audit: Audit

    def __init__(
        self, api_key: str | None, *, quota_clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = AccessPolicy()
        self.keyring = Keyring(api_key)
        self.quotas = Quotas(quota_clock)
        self._database: AccessDatabase | None = None

    def open(self, home: Path, registry: Registry, catalog: str | None = None) -> None:
        """Open or create the database: that of the URL `catalog`, or a file in the home. Raises
        HomeUnusable, CatalogUnavailable."""
        database: AccessDatabase
        database = SharedAccess(catalog) if catalog is not None else AccessFile(home / FILE)
        try:
            if catalog is None:
                registry.storage.watch(home / FILE)
            self.audit = Audit(database)
            self.keyring.open(database, self.audit, registry.storage.writing)
            self.policy.connect(self.audit, registry.records)
            database.watch(self.keyring.refresh)
        except BaseException:
            database.close()
            raise
        self._database = database

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
