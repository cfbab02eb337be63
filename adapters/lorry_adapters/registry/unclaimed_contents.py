"""Stored contents without an adapter, and when a start deletes them.

Contents that may be deleted at once have a mark, an empty file
`<home>/expendable/sha256-<64 hex>`: uploads that were interrupted before they had a record,
adapters that requests merged, which can be made again, and adapters that were removed while
requests still used them. The mark is written before it becomes true, and is deleted with the
content or once its record is on disk.

Any other content has lost its record. It is deleted only after it has had no owner for a while
(`<home>/unclaimed.json` has the first time), and never by a server that knows none of the stored
contents. Until then an adapter can be made of it again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from lorry_adapters.registry import document
from lorry_adapters.registry.blobs import DIGEST, Blobs, size_of

_FILE: Final = "unclaimed.json"
_MARKS: Final = "expendable"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnclaimedContent:
    digest: str
    bytes: int
    """Total size of its files."""
    since: datetime | None
    """When a start first found it without an owner. None if it is only in the store."""
    until: datetime | None
    """The first start after this time may delete it. None: nothing does."""


class UnclaimedContents:
    """Not safe for concurrent calls, except `gone`."""

    def __init__(self, home: Path, blobs: Blobs, keep: timedelta) -> None:
        """`keep`: how long a content without an owner is kept."""
        self._path = home / _FILE
        self._marks = home / _MARKS
        self._marks.mkdir(exist_ok=True)
        self._blobs = blobs
        self._keep = keep
        self._since: dict[str, datetime] = {}

    def expendable(self) -> frozenset[str]:
        """Return the digests that have a mark."""
        names = (path.name.replace("-", ":", 1) for path in self._marks.iterdir())
        return frozenset(filter(DIGEST.fullmatch, names))

    def collect(
        self, owned: Collection[str], now: datetime, *, sure: bool
    ) -> tuple[UnclaimedContent, ...]:
        """Delete what may be deleted, and return the other contents without an owner.

        Called at startup. `sure`: true if no records were lost."""
        stored = self._blobs.digests()
        known = self._read()
        self._since = {}
        for digest in sorted(stored - set(owned)):
            since = known.get(digest, now)
            # If the clock was set back, the time starts again.
            self._since[digest] = min(since, now)
        marked = self.expendable()
        knows_some = not stored.isdisjoint(owned)
        for digest, since in list(self._since.items()):
            old = knows_some and now - since >= self._keep
            if sure and (old or digest in marked):
                _log.info("deleting %s, which belongs to no adapter", self._blobs.folder(digest))
                self._blobs.delete(digest)
                del self._since[digest]
        for digest in marked - self._since.keys():
            self.claim(digest)
        self._write()
        return self.listing(self._since)

    def listing(self, digests: Collection[str]) -> tuple[UnclaimedContent, ...]:
        """Return facts about contents, without those whose files are gone."""
        found = []
        for digest in sorted(digests):
            since = self._since.setdefault(digest, datetime.now(UTC))
            try:
                size = size_of(self._blobs.folder(digest))
            except FileNotFoundError:
                continue
            found.append(UnclaimedContent(digest, size, since, since + self._keep))
        return tuple(found)

    def expend(self, digest: str) -> None:
        """Mark a content that need not be kept without an owner. A failure is only logged, as the
        content is then kept longer."""
        try:
            self._marks.mkdir(exist_ok=True)
            (self._marks / digest.replace(":", "-", 1)).touch()
        except OSError:
            _log.warning("cannot mark %s as expendable", digest, exc_info=True)

    def claim(self, digest: str) -> None:
        """Delete the mark of a content that has an adapter now. Raises OSError."""
        (self._marks / digest.replace(":", "-", 1)).unlink(missing_ok=True)

    def gone(self, digest: str) -> None:
        """The content is no longer there. Quick, and never an error."""
        with suppress(OSError):
            self.claim(digest)

    def _read(self) -> Mapping[str, datetime]:
        try:
            value = document.read(self._path)
            if value is None:
                return {}
            if not isinstance(value, dict):
                raise ValueError("it contains a list")
            return {
                digest: datetime.fromisoformat(since).astimezone(UTC)
                for digest, since in value.items()
                if DIGEST.fullmatch(digest)
            }
        except (ValueError, TypeError, OSError) as error:
            _log.warning("%s cannot be read (%s): nothing is deleted for now", self._path, error)
            return {}

    def _write(self) -> None:
        try:
            if self._since or self._path.exists():
                text = {digest: since.isoformat() for digest, since in self._since.items()}
                document.write(self._path, text)
        except OSError:
            _log.warning("cannot write %s", self._path, exc_info=True)
