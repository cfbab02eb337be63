"""The home folder, opened: the lock, the files, the ledger, and what nobody has.

Here is the order in which they are opened and changed; each knows nothing of the others.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lorry_adapters.errors import HomeUnusable
from lorry_adapters.registry.blobs import Blobs
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.home import Home
from lorry_adapters.registry.ledger import Ledger
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.unclaimed_contents import UnclaimedContent, UnclaimedContents


class Storage:
    """Thread-safe, but for what is to be done in `writing` only."""

    def __init__(self, home: Path, keep_unclaimed: timedelta) -> None:
        """Open or create `home`, which no other process may use until `close`. HomeUnusable."""
        self.lock = threading.Lock()
        """Held while something is changed."""
        with ExitStack() as opened:
            self._home = Home(home)
            opened.callback(self._home.close)
            try:
                self.blobs = Blobs(home)
                opened.callback(self.blobs.close)
                self.blobs.clean()
                self._unclaimed = UnclaimedContents(home, self.blobs, keep_unclaimed)
                to_stay = self.blobs.digests() - self._unclaimed.expendable()
                self.ledger = Ledger(home, to_stay.__contains__)
                opened.callback(self.ledger.close)
                owned = {content.digest for content in self.ledger.contents()}
                self._unclaimed.collect(owned, datetime.now(UTC), sure=self.ledger.remembers)
                self._home.watch(*self.ledger.places, *self.blobs.places)
            except OSError as error:
                raise HomeUnusable(f"cannot use the home folder {home}: {error}") from error
            self._opened = opened.pop_all()

    def trouble(self) -> str | None:
        """Why nothing can be stored, and what to do."""
        return self._home.trouble()

    def warning(self) -> str | None:
        """What may soon keep something from being stored."""
        return self._home.warning()

    def unusable(self, error: OSError) -> HomeUnusable:
        """What an error of the system's means for who wanted to store something."""
        return self._home.unusable(error)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """As `Blobs.staging`, for a block that stores something. HomeUnusable, StorageFull."""
        with self._home.guarded(), self.blobs.staging() as folder:
            yield folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For a block that changes what is stored; one at a time. HomeUnusable."""
        with self.lock, self._home.guarded():
            yield

    def publish(self, folder: Path, digest: str) -> bool:
        """As `Blobs.publish`. Whatever comes in goes at the next start unless it is saved;
        what was there before does not."""
        if not self.blobs.folder(digest).exists():
            self._unclaimed.expend(digest)
        return self.blobs.publish(folder, digest)

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """As the ledger does; `content`, that of a new version, is there to stay."""
        self.ledger.save(record, content)
        if content is not None:
            # After the record: with neither mark nor record a crash would leave what looks
            # like an adapter that was lost.
            self._unclaimed.claim(content.digest)

    @contextmanager
    def removing(self, digests: Sequence[str]) -> Iterator[None]:
        """For the block that records that the last adapters of `digests` are removed: a crash
        may come before they are deleted, and the next start need not keep them."""
        for digest in digests:
            self._unclaimed.expend(digest)
        try:
            yield
        except BaseException:
            for digest in digests:
                self._unclaimed.gone(digest)
            raise

    def free(self, digest: str) -> None:
        """Nobody has the content any more. Quick, never an error."""
        self.blobs.retire(digest)
        self._unclaimed.gone(digest)

    def unclaimed(self, known: Collection[str]) -> tuple[UnclaimedContent, ...]:
        """Contents that are there and not among `known`."""
        return self._unclaimed.listing(self.blobs.digests().difference(known))

    def close(self) -> None:
        self._opened.close()
