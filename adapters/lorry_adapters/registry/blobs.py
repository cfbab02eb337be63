"""Adapter files on disk: each content once, in a folder named by its digest.

    <home>/blobs/sha256-<64 hex>/adapter_config.json
                                 adapter_model.safetensors
                                   adapter_words.json (if the adapter brings words of its own)
    <home>/staging/<random>/     incoming uploads and removed folders

The digest covers the files' names and contents, however they were packed:

    sha256sum adapter_config.json adapter_model.safetensors [adapter_words.json] | sha256sum

A folder appears by renaming a staged folder whose files are already on disk, and disappears by
renaming it into staging. So after a power failure a blob is there whole or not at all. Start-up
empties staging. `unclaimed_contents` decides about blobs without an owner.

The registry knows the owners and decides when a blob is deleted; this module counts nothing.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import queue
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from lorry_adapters.errors import StorageFull
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE
from lorry_adapters.lora.words import WORDS_FILE
from lorry_adapters.registry.document import sync
from lorry_adapters.registry.store_counts import Operation, StoreCount


def files_in(folder: Path) -> tuple[str, ...]:
    """Return the names of a content's files in the digest's order, which is alphabetical."""
    words = (WORDS_FILE,) if (folder / WORDS_FILE).exists() else ()
    return (CONFIG_FILE, WEIGHTS_FILE, *words)


BLOBS = "blobs"
"""The folder in the home folder."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_BLOB_FOLDER = re.compile(r"sha256-[0-9a-f]{64}")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = logging.getLogger(__name__)


def digest_of(folder: Path) -> str:
    """Return `sha256:` and 64 hex digits for the files in `folder`. Raises OSError if one is
    missing."""
    manifest = hashlib.sha256()
    for name in files_in(folder):
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        manifest.update(f"{content}  {name}\n".encode())
    return f"sha256:{manifest.hexdigest()}"


def size_of(folder: Path) -> int:
    """Return the files' total size in bytes. Raises OSError if one is missing."""
    return sum((folder / name).stat().st_size for name in files_in(folder))


def folder_in(home: Path, digest: str) -> Path:
    """Return the folder of `digest` under `home`, which need not exist."""
    assert DIGEST.fullmatch(digest), digest
    return home / BLOBS / digest.replace(":", "-", 1)


def intact(folder: Path, digest: str) -> bool:
    """Return whether the files in `folder` have the digest. Reads all of them (about 1 GB/s).
    Raises OSError if the disk fails."""
    try:
        return digest_of(folder) == digest
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def storage_full_named(home: Path) -> Iterator[None]:
    """Translate the system's 'no space' and 'quota exceeded' to StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StorageFull(
            f"no room on the disk of {home} to store the adapter; free some and try again"
        ) from error


class Users(Protocol):
    """Who uses contents: the inventory."""

    def digests(self) -> frozenset[str]:
        """Return what has an owner or a hold."""

    def pinned(self) -> frozenset[str]:
        """Return what should stay."""

    def unless_held(self, digest: str, do: Callable[[str], None]) -> bool:
        """Call `do` unless there is a hold, so that none can begin meanwhile. Return whether."""


class Blobs:
    """Thread-safe for single calls; the registry orders calls for one digest.

    The calls about a store do nothing here: this folder is the only place (`cached_blobs`)."""

    elsewhere = False
    """True if contents that are not here may be in a store."""

    def __init__(self, home: Path) -> None:
        """Create missing folders under `home`. Reads and removes nothing yet."""
        self._home = home
        self._blobs = home / BLOBS
        self._staging = home / "staging"
        self.deleting: Callable[[str], AbstractContextManager[bool]] = lambda _: nullcontext(True)
        """Guards a deletion from the store. Yields true if no other server needs the content; none
        may begin to until the block ends. Blocks; may raise AdapterError, then it is tried later.
        """
        self.places = (self._blobs,)
        """Paths that must not be replaced."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        # Unlinking a large file can take long, and the last lease is often released by the
        # engine's thread. So that thread only renames, and this one deletes.
        self._retired: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._janitor = threading.Thread(
            target=self._delete_retired, name="lorry-blob-janitor", daemon=True
        )
        self._janitor.start()

    def clean(self) -> None:
        """Remove what an interrupted upload or removal left. Called at start-up before anything is
        staged."""
        for entry in list(self._staging.iterdir()):
            _log.info("removing %s, left by an interrupted upload or removal", entry)
            _delete(entry)
        for entry in self._blobs.iterdir():
            if _BLOB_FOLDER.fullmatch(entry.name) is None:
                _log.warning("%s is not Lorry's; it is not touched", entry)

    def digests(self) -> frozenset[str]:
        """Return the digests of all contents, damaged ones included."""
        names = (entry.name for entry in self._blobs.iterdir())
        return frozenset(n.replace("-", ":", 1) for n in names if _BLOB_FOLDER.fullmatch(n))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield a private empty folder on the blobs' file system, which is deleted after the
        block."""
        with storage_full_named(self._home):
            # If somebody cleaned up here, no adapter was lost.
            self._staging.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield folder
        finally:
            # A publish has renamed it: then there is nothing to delete.
            if folder.exists():
                _delete(folder)

    def seal(self, folder: Path) -> None:
        """Sync the staged files to disk and drop everything else beside them."""
        files = files_in(folder)
        with storage_full_named(self._home):
            for entry in list(folder.iterdir()):
                if entry.name not in files:
                    _delete(entry)
            for name in files:
                sync(folder / name)
            sync(folder)

    def publish(self, folder: Path, digest: str) -> bool:
        """Rename a sealed folder to `digest`. Return True if it is there now and replaces damaged
        files, if any. Return False if the same content was there already; then `folder` stays in
        staging."""
        assert folder.parent == self._staging
        target = self.folder(digest)
        with storage_full_named(self._home):
            if target.exists():
                if self.intact(digest):
                    return False
                self.retire(digest)
            os.rename(folder, target)
            sync(self._blobs)
        return True

    def folder(self, digest: str) -> Path:
        """Return the folder of `digest`, which need not exist."""
        return folder_in(self._home, digest)

    def intact(self, digest: str) -> bool:
        """Like the function `intact`."""
        return intact(self.folder(digest), digest)

    def retire(self, digest: str) -> None:
        """Remove a blob at once and delete its bytes soon. A missing one is ignored. A disk error
        is logged, as the caller cannot report it and start-up tries again."""
        grave = self._bury(digest)
        if grave is not None:
            self._retired.put(grave)

    def delete(self, digest: str) -> None:
        """Remove a blob and its bytes. Errors as for `retire`."""
        grave = self._bury(digest)
        if grave is not None:
            _delete(grave)

    def _bury(self, digest: str) -> Path | None:
        source = self.folder(digest)
        grave = self._staging / f"gone-{os.urandom(8).hex()}"
        try:
            os.rename(source, grave)
        except FileNotFoundError:
            return None
        except OSError:
            _log.warning("cannot remove %s; the next start will", source, exc_info=True)
            return None
        return grave

    # A store

    def put(self, digest: str, folder: Path, *, anew: bool = False) -> None:
        """Put a sealed content that is held into the store, before it gets a record. `anew`: the
        store's copy may be damaged. Raises StoreUnavailable."""

    def fetch(self, digest: str) -> bool:
        """Fetch a held content that is missing or damaged here. Return False if it is nowhere.

        Raises StoreUnavailable, InvalidAdapter if the store's copy is damaged, StorageFull."""
        return False

    def store_counts(self) -> Mapping[Operation, StoreCount]:
        """Return what this process has asked of the store; empty without one."""
        return {}

    def in_store(self) -> dict[str, int]:
        """Return the bytes of each content in the store, without those that it need not keep.
        Raises StoreUnavailable."""
        return {}

    def present(self, digest: str) -> Path:
        """Return the folder of a held content, fetched if it is missing. Raises as `fetch`."""
        folder = self.folder(digest)
        if not folder.exists():
            self.fetch(digest)
        return folder

    def touch(self, digests: Collection[str]) -> None:
        """Note that contents are used now. Quick."""

    def expend(self, digest: str) -> None:
        """Mark a content that the store need not keep without a record."""

    def claim(self, digest: str) -> None:
        """Delete the mark of a content that has a record now. Never an error."""

    def forget(self, digest: str) -> None:
        """The content has neither record nor hold. Quick, and never an error."""

    def begin(self, users: Users, owned: Callable[[], Collection[str]], *, sure: bool) -> None:
        """Keep the store and this folder in order from now on. `owned` returns what has a record;
        `sure`: true if no records were lost. Raises HomeUnusable."""

    def warning(self) -> str | None:
        """Return why nothing can be stored although adapters are served, or None."""
        return None

    def close(self) -> None:
        """Finish the deletions in progress."""
        self._retired.put(None)
        self._janitor.join()

    def _delete_retired(self) -> None:
        while (grave := self._retired.get()) is not None:
            _delete(grave)


def _delete(entry: Path) -> None:
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    except OSError:
        _log.warning("cannot remove %s; the next start will try again", entry, exc_info=True)
