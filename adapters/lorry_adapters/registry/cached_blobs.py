"""Contents in an object store, with the home folder as their cache.

A new content is put into the store before its record is written, and is fetched from there when
its files are needed and not here. The folder then has a size limit: the least recently used
contents leave it, never one that a request or a load holds, nor a pinned one, and only after a look
at the copy in the store. While the store does not answer, nothing leaves.

`<home>/expendable-in-store/` marks what has no record: a content on its way in, or one whose
removal is being recorded. A mark is written before it becomes true, and deleted with the record's
arrival or with the content. A thread deletes the marked contents that nothing uses, puts contents
into the store that have a record and are only here, and notices when the store is back.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from lorry_adapters.errors import (
    AdapterError,
    InvalidAdapter,
    Problem,
    Remedy,
    StoreUnavailable,
)
from lorry_adapters.registry.blobs import DIGEST, Blobs, Users, size_of, storage_full_named
from lorry_adapters.registry.object_store import ObjectStore
from lorry_adapters.registry.store_counts import Operation, StoreCount

_MARKS: Final = "expendable-in-store"

PROBE: Final = 15.0
"""Seconds between two looks at a store that answers."""

RETRY: Final = 2.0
"""Seconds between two looks at one that does not."""

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class CachedBlobs(Blobs):
    """Thread-safe."""

    elsewhere = True

    def __init__(self, home: Path, url: str, *, max_content: int, max_bytes: int | None) -> None:
        """`max_content`: bytes of one content. `max_bytes`: of all that are here; None: any
        number. Connects to nothing yet. Raises HomeUnusable if nothing here can read the URL."""
        self._store = ObjectStore(url)
        self._max_content = max_content
        self._max_bytes = max_bytes
        self._marks = home / _MARKS
        self._marks.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        # The lock guards these.
        self._busy: dict[str, tuple[threading.Lock, int]] = {}
        self._used: dict[str, float] = {}
        self._damaged: set[str] = set()
        self._away: str | None = None
        self._spared: frozenset[str] = frozenset()
        self._wake = threading.Event()
        self._over = False
        self._thread: threading.Thread | None = None
        super().__init__(home)

    # Storing and reading

    def put(self, digest: str, folder: Path, *, anew: bool = False) -> None:
        with self._only(digest):
            anew = anew or digest in self._damaged
            with suppress(InvalidAdapter):
                sizes = None if anew else self._ask(self._store.sizes, digest)
                if sizes is not None and sum(sizes.values()) == size_of(folder):
                    return
            self.expend(digest)
            self._ask(self._store.put, digest, folder)
            self._damaged.discard(digest)
        self._wake.set()

    def fetch(self, digest: str) -> bool:
        with self._only(digest):
            # Another thread may have fetched it.
            if self.intact(digest):
                return True
            with self.staging() as folder:
                try:
                    with storage_full_named(self._home):
                        found = self._ask(self._store.get, digest, folder, limit=self._max_content)
                except InvalidAdapter:
                    self._damaged.add(digest)
                    raise
                if not found:
                    return False
                self.seal(folder)
                try:
                    self.publish(folder, digest)
                except OSError as error:
                    # The engine's process fetched it too.
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
            self.touch([digest])
        _log.info("fetched %s from the store", digest)
        self._wake.set()
        return True

    def touch(self, digests: Collection[str]) -> None:
        now = time.time()
        with self._lock:
            self._used.update(dict.fromkeys(digests, now))

    # Marks

    def expend(self, digest: str) -> None:
        try:
            (self._marks / digest.replace(":", "-", 1)).touch()
        except OSError:
            _log.warning("cannot mark %s as expendable in the store", digest, exc_info=True)

    def claim(self, digest: str) -> None:
        with suppress(OSError):
            (self._marks / digest.replace(":", "-", 1)).unlink(missing_ok=True)

    def forget(self, digest: str) -> None:
        self.expend(digest)
        self._wake.set()

    def store_counts(self) -> Mapping[Operation, StoreCount]:
        return self._store.counts.now()

    def in_store(self) -> dict[str, int]:
        found = self._ask(self._store.contents)
        for digest in self._marked() - self._spared:
            found.pop(digest, None)
        return found

    # The thread

    def begin(self, users: Users, owned: Callable[[], Collection[str]], *, sure: bool) -> None:
        with suppress(StoreUnavailable):
            self._ask(self._store.check)
        if not sure:
            # Their records may have been lost.
            self._spared = self._marked()
        self._thread = threading.Thread(
            target=self._run, args=(users, owned), name="lorry-store", daemon=True
        )
        self._thread.start()

    def warning(self) -> str | None:
        if self._away is None:
            return None
        return f"{self._away}: uploads are refused, and only adapters that are here are served"

    def close(self) -> None:
        self._over = True
        self._wake.set()
        if self._thread is not None:
            # It may be waiting for a store that does not answer, and does nothing afterwards.
            self._thread.join(timeout=5.0)
        super().close()

    def _run(self, users: Users, owned: Callable[[], Collection[str]]) -> None:
        uploaded = False
        while not self._over:
            self._wake.clear()
            try:
                self._ask(self._store.check)
                if not uploaded:
                    self._put_missing(owned())
                    uploaded = True
                self._sweep(users, owned)
                self._trim(users)
            except AdapterError as error:
                if not isinstance(error, StoreUnavailable):
                    _log.warning("%s", error.message)
            except OSError:
                _log.warning("the cache of the store cannot be read", exc_info=True)
            self._wake.wait(PROBE if self._away is None else RETRY)

    def _put_missing(self, owned: Collection[str]) -> None:
        """Put contents into the store that were stored without it."""
        stored = self.in_store().keys()
        if lost := stored - set(owned):
            text = f"contents in the store that no adapter has: {len(lost)}"
            _log.info("%s", Problem(text, Remedy.ADOPT, count=len(lost)))
        missing = (self.digests() & set(owned)) - stored
        for digest in sorted(missing):
            with self._only(digest):
                if self._over or not self.intact(digest):
                    continue
                self._ask(self._store.put, digest, self.folder(digest))
                _log.info("put %s into the store", digest)

    def _sweep(self, users: Users, owned: Callable[[], Collection[str]]) -> None:
        """Delete marked contents that nothing uses."""
        marked = self._marked() - self._spared - users.digests()
        if not marked:
            return
        recorded = frozenset(owned())
        for digest in marked - recorded:
            # In this order: whoever changes an adapter puts its content into the store then.
            with self.deleting(digest) as unused, self._only(digest):
                # An upload of the same content holds it before it looks at the store.
                if self._over or not unused or digest in users.digests():
                    continue
                self._ask(self._store.delete, digest)
                self._damaged.discard(digest)
                self.claim(digest)

    def _trim(self, users: Users) -> None:
        """Retire contents until those that are here fit."""
        sizes = self._sizes()
        total = sum(sizes.values())
        if self._max_bytes is None or total <= self._max_bytes:
            return
        pinned = users.pinned()
        for digest in sorted(sizes, key=self._last_used):
            if self._over or total <= self._max_bytes:
                return
            if digest in pinned:
                continue
            with self._only(digest):
                try:
                    stored = self._ask(self._store.sizes, digest)
                except InvalidAdapter:
                    continue
                if stored is None or sum(stored.values()) != sizes[digest]:
                    continue
                if users.unless_held(digest, self.retire):
                    total -= sizes[digest]

    def _sizes(self) -> dict[str, int]:
        found = {}
        for digest in self.digests():
            # A damaged one is repaired when it is needed.
            with suppress(FileNotFoundError):
                found[digest] = size_of(self.folder(digest))
        with self._lock:
            self._used = {one: when for one, when in self._used.items() if one in found}
        return found

    def _last_used(self, digest: str) -> float:
        with self._lock:
            used = self._used.get(digest, 0.0)
        try:
            return max(used, self.folder(digest).stat().st_mtime)
        except OSError:
            return used

    def _marked(self) -> frozenset[str]:
        names = (path.name.replace("-", ":", 1) for path in self._marks.iterdir())
        return frozenset(filter(DIGEST.fullmatch, names))

    # Within

    @contextmanager
    def _only(self, digest: str) -> Iterator[None]:
        """One thread at a time for each digest."""
        with self._lock:
            lock, waiting = self._busy.get(digest, (threading.Lock(), 0))
            self._busy[digest] = (lock, waiting + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._busy.pop(digest)
                if waiting > 1:
                    self._busy[digest] = (lock, waiting - 1)

    def _ask(
        self, call: Callable[Given, Answer], *given: Given.args, **more: Given.kwargs
    ) -> Answer:
        """Call the store, and remember whether it answered."""
        try:
            answer = call(*given, **more)
        except StoreUnavailable as error:
            self._note(error)
            raise
        if self._away is not None:
            self._away = None
            _log.info("the store %s is back", self._store.url)
        return answer

    def _note(self, error: StoreUnavailable) -> None:
        if self._away is None:
            _log.warning("%s", error.message)
        self._away = error.message
