"""Stored contents that no adapter has: which of them go at a start, and when.

Contents that may go at once have a mark, an empty file `<home>/expendable/sha256-<64 hex>`:
uploads that were interrupted before they had a record, what requests merged, which can be
made again, and what was removed while requests still ran with it. The mark is there before
what makes it true, and goes when the content does, or when its record is on disk.

Any other has lost its record. Nothing of it is deleted before it has been seen without an
owner for a while (`<home>/unclaimed.json` has since when), and nothing at all by a server
that knows none of the contents that are there. Until then an adapter can be made of it again.
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
    """Of its files."""
    since: datetime
    """When a start first saw that nobody has it."""
    until: datetime
    """The first start after that may delete it."""


class UnclaimedContents:
    """One thread at a time, but for `gone`."""

    def __init__(self, home: Path, blobs: Blobs, keep: timedelta) -> None:
        """Nothing is deleted before nobody has had it for `keep`."""
        self._path = home / _FILE
        self._marks = home / _MARKS
        self._marks.mkdir(exist_ok=True)
        self._blobs = blobs
        self._keep = keep
        self._since: dict[str, datetime] = {}

    def expendable(self) -> frozenset[str]:
        """What has a mark."""
        names = (path.name.replace("-", ":", 1) for path in self._marks.iterdir())
        return frozenset(filter(DIGEST.fullmatch, names))

    def collect(
        self, owned: Collection[str], now: datetime, *, sure: bool
    ) -> tuple[UnclaimedContent, ...]:
        """At start-up: delete what may go, and say what else nobody has. `sure`: records were
        not lost."""
        stored = self._blobs.digests()
        known = self._read()
        self._since = {}
        for digest in sorted(stored - set(owned)):
            since = known.get(digest, now)
            # A clock that was set back: from anew rather than for ever.
            self._since[digest] = min(since, now)
        marked = self.expendable()
        knows_some = not stored.isdisjoint(owned)
        for digest, since in list(self._since.items()):
            old = knows_some and now - since >= self._keep
            if sure and (old or digest in marked):
                _log.info("deleting %s, which no adapter has", self._blobs.folder(digest))
                self._blobs.delete(digest)
                del self._since[digest]
        for digest in marked - self._since.keys():
            self.claim(digest)
        self._write()
        return self.listing(self._since)

    def listing(self, digests: Collection[str]) -> tuple[UnclaimedContent, ...]:
        """Facts of some contents, those left out whose files are gone."""
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
        """Mark a content that need not be kept once nobody has it. Not being able to is no
        error: it is kept longer then."""
        try:
            self._marks.mkdir(exist_ok=True)
            (self._marks / digest.replace(":", "-", 1)).touch()
        except OSError:
            _log.warning("cannot mark %s as expendable", digest, exc_info=True)

    def claim(self, digest: str) -> None:
        """Take the mark away. OSError, as with it an adapter's content would not be safe."""
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
                raise ValueError("it holds a list")
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
