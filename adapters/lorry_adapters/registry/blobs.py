"""Adapter files on disk, each content once, in a folder named by its digest.

    <home>/blobs/sha256-<64 hex>/adapter_config.json
                                 adapter_model.safetensors
                                 adapter_words.json (where the adapter brings words of its own)
    <home>/staging/<random>/     uploads on their way in, removed folders on their way out

The digest is over the files' names and contents, however they were packed:

    sha256sum adapter_config.json adapter_model.safetensors [adapter_words.json] | sha256sum

A folder appears by one rename of a staged folder whose files are already on disk, and
disappears by one rename into staging: whatever moment the power fails, a blob is there
whole or not at all. Start-up empties staging; what becomes of blobs that nobody owns is told
in `unclaimed`.

Who owns what, and when a blob may go, is the registry's business; nothing here counts.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorry_adapters.errors import StorageFull
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE
from lorry_adapters.lora.words import WORDS_FILE
from lorry_adapters.registry.document import sync


def files_in(folder: Path) -> tuple[str, ...]:
    """The names of a content's files, in the digest's order, which is alphabetical."""
    words = (WORDS_FILE,) if (folder / WORDS_FILE).exists() else ()
    return (CONFIG_FILE, WEIGHTS_FILE, *words)


BLOBS = "blobs"
"""Of the home folder."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_BLOB_FOLDER = re.compile(r"sha256-[0-9a-f]{64}")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = logging.getLogger(__name__)


def digest_of(folder: Path) -> str:
    """`sha256:` and 64 hex digits for the files in `folder`. OSError if one is missing."""
    manifest = hashlib.sha256()
    for name in files_in(folder):
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        manifest.update(f"{content}  {name}\n".encode())
    return f"sha256:{manifest.hexdigest()}"


def size_of(folder: Path) -> int:
    """Bytes of the files together. OSError if one is missing."""
    return sum((folder / name).stat().st_size for name in files_in(folder))


def folder_in(home: Path, digest: str) -> Path:
    """Where `digest` is under `home`, or would be."""
    assert DIGEST.fullmatch(digest), digest
    return home / BLOBS / digest.replace(":", "-", 1)


def intact(folder: Path, digest: str) -> bool:
    """True if the files in `folder` have the digest. Reads them whole (about 1 GB/s). OSError
    where the disk fails."""
    try:
        return digest_of(folder) == digest
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def storage_full_named(home: Path) -> Iterator[None]:
    """Turns the system's 'no space' and 'quota exceeded' into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StorageFull(
            f"no room on the disk of {home} to keep the adapter; free some and try again"
        ) from error


class Blobs:
    """Thread-safe in so far as each call is; the registry orders calls on one digest."""

    def __init__(self, home: Path) -> None:
        """Create the folders under `home` where missing. Reads and removes nothing yet."""
        self._home = home
        self._blobs = home / BLOBS
        self._staging = home / "staging"
        self.places = (self._blobs,)
        """What has to stay there."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        # Unlinking a large file can take long, and the one who gives the last lease back
        # is the engine's thread: it only renames, this thread deletes.
        self._retired: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._janitor = threading.Thread(
            target=self._delete_retired, name="lorry-blob-janitor", daemon=True
        )
        self._janitor.start()

    def clean(self) -> None:
        """At start-up, before anything is staged: remove what an interrupted upload or
        removal left."""
        for entry in list(self._staging.iterdir()):
            _log.info("removing %s, left by an interrupted upload or removal", entry)
            _delete(entry)
        for entry in self._blobs.iterdir():
            if _BLOB_FOLDER.fullmatch(entry.name) is None:
                _log.warning("%s is not Lorry's; it is left alone", entry)

    def digests(self) -> frozenset[str]:
        """Of every content that is there, whole or not."""
        names = (entry.name for entry in self._blobs.iterdir())
        return frozenset(n.replace("-", ":", 1) for n in names if _BLOB_FOLDER.fullmatch(n))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A private empty folder on the blobs' file system, gone when the block ends."""
        with storage_full_named(self._home):
            # Nothing in it is missed: whoever cleaned up there took no adapter away.
            self._staging.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield folder
        finally:
            # Published by a rename: then there is nothing to delete.
            if folder.exists():
                _delete(folder)

    def seal(self, folder: Path) -> None:
        """Put the staged files on disk for good and drop everything else beside them."""
        files = files_in(folder)
        with storage_full_named(self._home):
            for entry in list(folder.iterdir()):
                if entry.name not in files:
                    _delete(entry)
            for name in files:
                sync(folder / name)
            sync(folder)

    def publish(self, folder: Path, digest: str) -> bool:
        """Rename a sealed folder to `digest`. True: what was there before, if anything,
        was damaged and is replaced. False: the same content is there already, `folder`
        stays in staging."""
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
        """Where `digest` is, or would be."""
        return folder_in(self._home, digest)

    def intact(self, digest: str) -> bool:
        """As the function `intact`."""
        return intact(self.folder(digest), digest)

    def retire(self, digest: str) -> None:
        """Take a blob away at once, its bytes soon. Missing is fine; a disk error is logged,
        as the caller has nobody to tell and start-up tries again."""
        grave = self._bury(digest)
        if grave is not None:
            self._retired.put(grave)

    def delete(self, digest: str) -> None:
        """Take a blob and its bytes away. Errors as for `retire`."""
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

    def close(self) -> None:
        """Finish the deletions under way."""
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
