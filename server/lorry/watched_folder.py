"""A folder whose PEFT folders are adapters: put in, registered; changed, a new version; taken out,
disabled or removed.

The folder is looked at again and again, since network file systems announce nothing. A PEFT folder
is read once its files have kept their sizes and times for a second, from a copy, and the copy is
dropped if they changed meanwhile. So one that is still being copied is not taken.

A name belongs to who registered it. An adapter that was uploaded is never replaced, disabled or
removed from here: its folder is refused until the name is free. An adapter from here may be changed
over HTTP like any other, which stays until the folder's files change.

`<home>/watched.json` has the adapters that came from here, so that a restart notices what changed
while the server was down.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from lorry.advice import message_of
from lorry_adapters.errors import (
    AdapterConflict,
    AdapterError,
    ForbiddenSource,
    InvalidAdapter,
    InvalidAdapterName,
    UnknownAdapter,
    UnsupportedUpload,
    UploadTooLarge,
)
from lorry_adapters.lora.weights import CONFIG_FILE, HUB_FILE, WEIGHTS_FILE
from lorry_adapters.registry import document
from lorry_adapters.registry.archive import Upload
from lorry_adapters.registry.names import check_name
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.sources import upload_from

SETTLED: Final = 1.0
"""Seconds without a change after which files count as complete."""

INTERVAL: Final = 0.25
"""Seconds between two looks; more if a look takes long."""

_SHARE: Final = 20
"""A look takes at most one part in so many of a processor's time, ..."""

_LONGEST: Final = 5.0
"""... unless the next one would begin only after so many seconds."""

RETRY: Final = 5.0
"""Seconds until a folder is tried again whose refusal may have been temporary."""

_MAX_FILES: Final = 1000
"""Files of a folder that are looked at."""

_FILE: Final = "watched.json"
_PEFT: Final = frozenset({CONFIG_FILE, WEIGHTS_FILE, HUB_FILE})

_FINAL = (InvalidAdapter, InvalidAdapterName, UnsupportedUpload, UploadTooLarge, ForbiddenSource)
"""Errors that stay until the files change."""

Files = tuple[tuple[str, int, int], ...]
"""Name, size and modification time in ns of each file."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchedAdapter:
    """The folder that an adapter last came from."""

    digest: str
    files: Files
    """Empty if it was taken out."""
    ours: bool
    """False if the adapter was uploaded with the same content."""
    disabled: bool = False
    """True if it was disabled because its folder was taken out."""


@dataclass(slots=True)
class _Seen:
    files: Files
    since: float
    """When they were first like that."""
    retry: float = 0.0
    """When to try again if they were refused."""
    taken_by: str | None = None
    """Digest of the uploaded adapter that had the name then."""


class WatchedFolder:
    """`look` and `close` are for one thread; `problems` is for all."""

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        *,
        home: Path,
        roots: tuple[Path, ...],
        max_upload: int,
        removed: str,
    ) -> None:
        """`roots`: other folders to which its links may lead. `max_upload`: bytes of an adapter.
        `removed`: disable, remove or keep an adapter whose folder is taken out."""
        self._registry = registry
        self._folder = folder
        self._state = home / _FILE
        self._roots = (folder, *roots)
        self._max_upload = max_upload
        self._removed = removed
        self._taken = self._read()
        self._seen: dict[str, _Seen] = {}
        self._missing: dict[str, float] = {}
        self._cost = 0.0
        self._identity: tuple[int, int] | None = None
        self._problems: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorry-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def problems(self) -> Mapping[str, str]:
        """Return what is wrong, by the folder's name; `.` is the watched folder itself."""
        return dict(self._problems)

    def look(self, now: float) -> None:
        """Look once, at the time `now` in seconds."""
        begun = time.thread_time()
        found = self._found()
        self._cost = time.thread_time() - begun
        if found is None:
            return
        before = dict(self._taken)
        for name in self._seen.keys() - found.keys():
            del self._seen[name]
        for name in self._problems.keys() - found.keys() - self._taken.keys():
            del self._problems[name]
        for name, files in found.items():
            self._missing.pop(name, None)
            seen = self._seen.get(name)
            if seen is None or seen.files != files:
                self._seen[name] = _Seen(files, now)
            elif now - seen.since >= SETTLED and now >= seen.retry:
                self._settled(name, seen, now)
        for name, taken in before.items():
            if name in found or not taken.files or self._over.is_set():
                continue
            since = self._missing.setdefault(name, now)
            if now - since >= SETTLED:
                self._missing[name] = now + RETRY - SETTLED
                self._out(name, taken)
        if self._taken != before:
            self._write()

    # Looking

    def _found(self) -> dict[str, Files] | None:
        """Return the folders that may be adapters, or None if the folder is not there now."""
        try:
            identity = self._folder.stat()
            entries = sorted(os.listdir(self._folder))
        except OSError as error:
            self._problem(".", f"{self._folder} cannot be read: {error.strerror}")
            return None
        now = (identity.st_dev, identity.st_ino)
        if not entries and self._identity not in (None, now):
            # What a file system leaves that is no longer mounted.
            self._problem(".", f"{self._folder} was replaced by an empty folder")
            return None
        if not entries and self._identity is None and any(t.files for t in self._taken.values()):
            self._problem(".", f"{self._folder} is empty, and was not when the server stopped")
            return None
        self._identity = now
        self._problems.pop(".", None)
        found = {}
        for name in entries:
            if not name.startswith("."):
                files = _files(self._folder / name)
                if not _PEFT.isdisjoint(entry[0] for entry in files):
                    found[name] = files
        return found

    # Acting

    def _settled(self, name: str, seen: _Seen, now: float) -> None:
        taken = self._taken.get(name)
        if self._over.is_set():
            return
        if taken is not None and taken.files == seen.files:
            self._problems.pop(name, None)
            return
        record = self._record(name)
        seen.retry = now + RETRY
        if record is not None and record.current.digest == seen.taken_by:
            return
        try:
            done = self._take(name, seen.files, taken, record)
        except (AdapterError, OSError) as error:
            self._problem(name, message_of(error))
            if isinstance(error, _FINAL):
                seen.retry = math.inf
            if isinstance(error, AdapterConflict) and record is not None:
                seen.taken_by = record.current.digest
            return
        if done is None:
            seen.since = now
            return
        self._taken[name] = done
        self._problems.pop(name, None)

    def _take(
        self, name: str, files: Files, taken: WatchedAdapter | None, record: AdapterRecord | None
    ) -> WatchedAdapter | None:
        """Register a folder. Return None if it changes meanwhile."""
        check_name(name, frozenset())
        upload = upload_from(self._folder / name, self._roots)
        with self._registry.staging() as staging:
            copied = self._copied(upload, staging)
            if _files(self._folder / name) != files:
                return None
            if record is None or not _is_ours(taken, record):
                try:
                    new, created = self._registry.add(name, copied)
                except AdapterConflict as error:
                    raise AdapterConflict(
                        f"adapter {name!r} was uploaded and has other content, so it stays as it "
                        "is; rename the folder, or remove that adapter"
                    ) from error
                return WatchedAdapter(new.current.digest, files, ours=created)
            new = self._registry.put(name, copied, if_match=record.current.digest)
        if taken is not None and taken.disabled and not new.enabled:
            new = self._registry.patch(name, enabled=True)
        logger.info("adapter %s is at version %d, from %s", name, new.current.version, self._folder)
        return WatchedAdapter(new.current.digest, files, ours=True)

    def _copied(self, upload: Upload, to: Path) -> Upload:
        assert upload.config is not None and upload.weights is not None
        files = {"config": upload.config, "weights": upload.weights, **upload.words}
        total = sum(file.stat().st_size for file in files.values())
        if total > self._max_upload:
            raise UploadTooLarge(
                f"its files have {total} bytes; the limit is {self._max_upload} (--max-upload)"
            )
        copies = {key: Path(shutil.copyfile(file, to / key)) for key, file in files.items()}
        config, weights = copies.pop("config"), copies.pop("weights")
        return Upload(config=config, weights=weights, words=copies)

    def _out(self, name: str, taken: WatchedAdapter) -> None:
        """The folder was taken out."""
        record = self._record(name)
        gone = replace(taken, files=(), disabled=False)
        try:
            if record is None or not _is_ours(taken, record) or self._removed == "keep":
                pass
            elif self._removed == "remove":
                self._registry.remove(name)
                logger.info("adapter %s is removed: its folder was taken out", name)
            elif record.enabled:
                self._registry.patch(name, enabled=False)
                gone = replace(gone, disabled=True)
                logger.info("adapter %s is disabled: its folder was taken out", name)
        except AdapterError as error:
            self._problem(name, message_of(error))
            return
        self._problems.pop(name, None)
        if self._removed == "remove" or not taken.ours or record is None:
            del self._taken[name]
        else:
            self._taken[name] = gone

    def _record(self, name: str) -> AdapterRecord | None:
        try:
            return self._registry.get(name)
        except UnknownAdapter:
            return None

    def _problem(self, name: str, message: str) -> None:
        if self._problems.get(name) != message:
            logger.warning("watched folder %s: %s", name, message)
        self._problems[name] = message

    # The thread

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.look(time.monotonic())
            except Exception:
                logger.exception("the watched folder %s cannot be looked at", self._folder)
            self._over.wait(min(max(INTERVAL, _SHARE * self._cost), _LONGEST))

    def _read(self) -> dict[str, WatchedAdapter]:
        try:
            kept = dict(document.read(self._state) or {})
            return {name: _taken(value) for name, value in kept.items()}
        except (ValueError, TypeError, KeyError, OSError) as error:
            logger.warning("%s cannot be read (%s)", self._state, error)
            return {}

    def _write(self) -> None:
        try:
            document.write(self._state, {name: asdict(one) for name, one in self._taken.items()})
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._state, error)


def _files(folder: Path) -> Files:
    """Return the regular files of a folder, behind their links; empty if it is none."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name)[:_MAX_FILES]:
                try:
                    about = entry.stat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(about.st_mode):
                    found.append((entry.name, about.st_size, about.st_mtime_ns))
    except OSError:
        return ()
    return tuple(found)


def _is_ours(taken: WatchedAdapter | None, record: AdapterRecord) -> bool:
    digests = {version.digest for version in record.versions}
    return taken is not None and taken.ours and taken.digest in digests


def _taken(value: Mapping[str, Any]) -> WatchedAdapter:
    files = tuple((str(name), int(size), int(when)) for name, size, when in value["files"])
    return WatchedAdapter(str(value["digest"]), files, bool(value["ours"]), bool(value["disabled"]))
