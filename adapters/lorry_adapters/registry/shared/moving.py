"""Moves a home's own catalog to a database that servers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lorry_adapters.errors import AdapterConflict
from lorry_adapters.registry.ledger import Ledger
from lorry_adapters.registry.ledgers import CATALOG
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.shared.shared_ledger import SharedLedger
from lorry_adapters.registry.sidecars import FOLDER, Sidecar


@dataclass(frozen=True, slots=True)
class Moved:
    added: tuple[str, ...]
    """Names of the adapters that the database has now."""
    there: tuple[str, ...]
    """Names of those that it had already, with the same versions."""


def move(home: Path, url: str) -> Moved:
    """Add the adapters of a home to the catalog of the URL, with their versions and states. The
    home must be locked.

    Nothing is changed unless all can be added. Raises AdapterConflict for a name that has other
    versions there, HomeUnusable, CatalogUnavailable, and OSError.
    """
    ledger = Ledger(home, lambda digest: True)
    try:
        ours = ledger.stored()
        contents = {content.digest: content for content in ledger.contents()}
    finally:
        ledger.close()
    shared = SharedLedger(url, "")
    try:
        theirs = {record.name: record for record in shared.adapters()}
        for one in ours:
            _check(one, theirs)
        added = [one for one in ours if one.record.name not in theirs]
        for sidecar in added:
            with shared.changing() as news:
                # Somebody may have been quicker.
                _check(sidecar, {record.name: record for record in news.changed})
                shared.store(sidecar, [contents[digest] for digest in sidecar.sizes])
    finally:
        shared.close()
    there = tuple(one.record.name for one in ours if one.record.name in theirs)
    return Moved(tuple(one.record.name for one in added), there)


def set_aside(home: Path, *names: str) -> tuple[Path, ...]:
    """Rename what was moved, so that no server takes it for the catalog. Nothing is deleted."""
    end = f"moved-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    renamed = []
    for name in (CATALOG, FOLDER, *names):
        for path in sorted(home.glob(f"{name}*")):
            if ".moved-" not in path.name and ".damaged-" not in path.name:
                renamed.append(path.rename(path.with_name(f"{path.name}.{end}")))
    return tuple(renamed)


def _check(ours: Sidecar, theirs: Mapping[str, AdapterRecord]) -> None:
    other = theirs.get(ours.record.name)
    if other is not None and _versions(other) != _versions(ours.record):
        raise AdapterConflict(
            f"adapter {other.name!r} is in the shared catalog already, with other versions; remove "
            "it there or here first"
        )


def _versions(record: AdapterRecord) -> set[tuple[int, str]]:
    return {(version.version, version.digest) for version in record.versions}
