"""The two places of the registered adapters: the home folder, or a database that servers share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from lorry_adapters.errors import HomeUnusable, Problem, Remedy
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.record import AdapterRecord, VersionRecord

CATALOG: Final = "catalog.sqlite3"
"""The home's own, in its folder."""


@dataclass(frozen=True, slots=True)
class News:
    """What other servers have changed since the last look."""

    changed: tuple[AdapterRecord, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


class AdapterLedger(Protocol):
    """Stores adapters. One change at a time in this process; reading is thread-safe."""

    is_shared: bool
    """True if other servers change it too."""
    began: bool
    """True if it is shared and had changes before this server began."""
    recovery: str | None
    """A line for people about lost data that was restored."""
    remembers: bool
    """False if earlier removals are unknown."""
    places: tuple[Path, ...]
    """Paths that must not be replaced."""

    def adapters(self) -> tuple[AdapterRecord, ...]:
        """Return all stored adapters, by name."""

    def contents(self) -> tuple[StoredContent, ...]: ...

    def next_version(self, name: str) -> int:
        """Return the highest number ever used under `name` plus one; 1 for a new name."""

    def changing(self) -> AbstractContextManager[News]:
        """Guard a block with at most one `save` or `forget`. Yields what others changed before;
        nobody else changes anything until then. Raises CatalogUnavailable."""

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Make the stored adapter equal `record`; `content` belongs to a new version. Raises
        StorageFull, HomeUnusable, CatalogUnavailable."""

    def save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        """Replace the facts about one content after it was verified again. Raises as `save`."""

    def forget(self, name: str) -> None:
        """Remove an adapter with all its versions. Raises as `save`."""

    def used_elsewhere(self, digests: Collection[str]) -> frozenset[str]:
        """Return those of the contents that other servers use. Within `changing`. Raises
        CatalogUnavailable."""

    def deleting(self, digest: str) -> AbstractContextManager[bool]:
        """Guard the deletion of a content that this server does not need from a store that servers
        share. Yields true if no other needs it. Nobody changes anything meanwhile. Raises
        CatalogUnavailable."""

    def warning(self) -> str | None:
        """Return why nothing can be changed although adapters are served, or None."""

    def close(self) -> None: ...


def open_ledger(
    home: Path, has_blob: Callable[[str], bool], catalog: str | None, layout: str
) -> AdapterLedger:
    """Open the database of the URL `catalog`, or without one the home's own catalog.

    `has_blob(digest)` returns whether a content's files are here. `layout`: fingerprint of the
    base. Raises HomeUnusable, CatalogUnavailable, and OSError if the disk fails.
    """
    # SQLAlchemy and the home's catalog are imported by those who use them.
    if catalog is not None:
        from lorry_adapters.registry.shared.shared_ledger import SharedLedger

        if (home / CATALOG).exists():
            raise HomeUnusable(
                Problem(
                    f"the home folder {home} has a catalog of its own, whose adapters would not be "
                    "served; move them to the shared one, or choose another home folder",
                    Remedy.MOVE_CATALOG,
                )
            )
        return SharedLedger(catalog, layout)
    from lorry_adapters.registry.ledger import Ledger

    return Ledger(home, has_blob)
