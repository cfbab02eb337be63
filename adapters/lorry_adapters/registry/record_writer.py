"""Changes records: on disk first, then in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from lorry_adapters.errors import AdapterBroken, AdapterConflict
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.inventory import Inventory
from lorry_adapters.registry.names import check_scale
from lorry_adapters.registry.policy import Policy
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.retention import Retention, expired
from lorry_adapters.registry.revision import (
    Changes,
    alias_alone,
    check_match,
    check_unnamed,
    of_alias,
    with_changes,
    without_versions,
)
from lorry_adapters.registry.storage import Storage
from lorry_adapters.registry.version_rules import named_by, version_of


class RecordWriter:
    """`save`, `own` and `check_free` must be called in `Storage.changing`; the others enter it."""

    def __init__(
        self,
        storage: Storage,
        inventory: Inventory,
        policy: Policy,
        reserved: frozenset[str],
        retention: Retention,
        pin: Callable[[], None],
    ) -> None:
        """`pin` is called after each change, as it may change which contents are pinned."""
        self._storage = storage
        self._inventory = inventory
        self._policy = policy
        self._reserved = reserved
        self._retention = retention
        self._pin = pin
        self.lost: Callable[[str, int], None] = lambda name, version: None
        """Called with each version that an adapter loses while it stays."""

    def patch(self, name: str, if_match: str | None, changes: Changes) -> AdapterRecord:
        """Change an adapter, or for the name of an alias what that means. Running requests keep
        what they started with.

        Raises UnknownAdapter if a version does not exist, AdapterBroken if it cannot be served,
        AdapterConflict if the name of an alias is taken, and what `with_changes` raises.
        """
        if (scale := changes.get("scale")) is not None:
            changes["scale"] = check_scale(scale)
        with self._storage.changing():
            check_match(self._inventory.get(name), if_match)
            old = self._inventory.true(name)
            if name != old.name:
                changes = of_alias(old, name, changes)
            record = with_changes(old, changes, self._reserved)
            for alias in changes.get("aliases") or ():
                self._policy.check_name(alias.partition("@")[0])
                self.check_free(alias, old.name)
            self._check_intact(old, record)
            return old if record == old else self.save(record)

    def remove(self, name: str, version: int | None) -> None:
        """Remove an adapter: at once for new requests, freed when the running ones end.

        `version` removes only that one; raises AdapterConflict if a name means it and it is not the
        only one. Removing the last version removes the adapter. An alias is removed alone.
        """
        with self._storage.changing():
            seen, old = self._inventory.get(name), self._inventory.true(name)
            if name != seen.name:
                if version is not None:
                    raise alias_alone(name, seen.name)
                self.save(with_changes(old, {"aliases": {name: None}}, self._reserved))
                return
            if version is not None:
                gone = version_of(old, version)
                if len(old.versions) > 1:
                    check_unnamed(old, gone)
                    self.save(without_versions(old, [gone]))
                    return
            gone_with = self._inventory.only_of(name, old.versions)
            with self._policy.changing(old, None), self._storage.removing(gone_with):
                self._storage.ledger.forget(name)
            self._inventory.forget(name)
            self._pin()

    def retire(self, now: datetime | None) -> None:
        """Remove the versions that are no longer kept. Called now and then, as they grow old; a
        push does it for its adapter."""
        for record in self._inventory.every():
            # Without asking for other servers' leases.
            if self._expired(record, now, self._inventory.held):
                with self._storage.changing():
                    again = self._inventory.find(record.name)
                    if again is not None and self._expired(again, now, self._held):
                        self.save(again, now=now)

    def save(
        self,
        record: AdapterRecord,
        stored: StoredContent | None = None,
        now: datetime | None = None,
    ) -> AdapterRecord:
        """Store and show a record, without the versions that are no longer kept. Return it."""
        if gone := self._expired(record, now, self._held):
            record = without_versions(record, gone)
        old = self._inventory.find(record.name)
        kept = {version.version for version in record.versions}
        lost = [] if old is None else [v for v in old.versions if v.version not in kept]
        only = self._inventory.only_of(record.name, lost)
        with self._policy.changing(old, record), self._storage.removing(only):
            self._storage.save(record, stored)
        self._inventory.show(record)
        self._pin()
        for version in lost:
            self.lost(record.name, version.version)
        return record

    def _expired(
        self,
        record: AdapterRecord,
        now: datetime | None,
        held: Callable[[Iterable[str]], frozenset[str]],
    ) -> tuple[VersionRecord, ...]:
        return expired(record, self._retention, now or datetime.now(UTC), held)

    def _held(self, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the digests that leases hold, here or on another server."""
        asked = frozenset(digests)
        ours = self._inventory.held(asked)
        return ours | self._storage.ledger.used_elsewhere(asked - ours)

    def own(self, name: str) -> AdapterRecord:
        """Return the record. Raises UnknownAdapter, and AdapterConflict for an alias."""
        record = self._inventory.get(name)
        if record.name != name:
            raise alias_alone(name, record.name)
        return record

    def check_free(self, name: str, adapter: str | None = None) -> None:
        """Raise AdapterConflict if `name` is another adapter's than `adapter`, or an alias of
        one."""
        taken = self._inventory.adapter_of(name)
        if taken is not None and (taken != adapter or name == adapter):
            raise AdapterConflict(
                f"the name {name!r} is taken; aliases and adapters share their names", param="name"
            )

    def _check_intact(self, old: AdapterRecord, new: AdapterRecord) -> None:
        """Raise AdapterBroken if a name would newly mean a version that cannot be served."""
        fresh = named_by(new) - named_by(old)
        for version in new.versions:
            why = self._inventory.why_broken(version.digest)
            if version.version in fresh and why is not None:
                text = f"adapter {new.name!r} cannot go to version {version.version}: {why}"
                raise AdapterBroken(text, param="version")
