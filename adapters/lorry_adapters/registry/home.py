"""The home folder: locked by one server, with a check that it was not replaced.

The registry's view in memory is correct only if no other process changes the folder. Also, a
deleted file can still be written to while it is open: SQLite would report a change as stored,
and it would be lost. So the opened files are remembered, and looked up again by name before each
change.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lorry_adapters.errors import HomeUnusable, Problem, Remedy

_LEAST: Final = 1 << 20
"""Free bytes below which no adapter can be stored."""

_CURE: Final = "restart the server, which restores what it can"


class Home:
    """Locked from construction to `close`. The operating system unlocks it when the process dies.
    Thread-safe once everything is watched."""

    def __init__(self, path: Path) -> None:
        """Create the folder if it is missing. Raises HomeUnusable if another process has locked
        it or it cannot be written."""
        self.path = path
        lock = path / "lock"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = lock.open("ab")
        except OSError as error:
            raise HomeUnusable(f"cannot write to the home folder {path}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._watched = {path: _identity(path), lock: _identity(lock)}
        except BlockingIOError as error:
            self._file.close()
            raise HomeUnusable(
                Problem(
                    f"another server uses the home folder {path}; stop it, or choose another",
                    Remedy.OTHER_HOME,
                    path=str(path),
                )
            ) from error
        except OSError as error:
            self._file.close()
            raise HomeUnusable(f"cannot lock {lock}: {error}") from error

    def watch(self, *paths: Path) -> None:
        """Watch files and folders that must not be replaced. Raises OSError."""
        self._watched |= {path: _identity(path) for path in paths}

    def trouble(self) -> str | None:
        """Return the reason why nothing can be stored, or None. A full disk does not count: it may
        change by itself, and the operation that fails reports it."""
        for path, identity in self._watched.items():
            what = "the home folder" if path == self.path else "in the home folder"
            try:
                now = _identity(path)
            except (FileNotFoundError, NotADirectoryError):
                return f"{what} {path} was deleted while the server runs; {_CURE}"
            except OSError as error:
                return f"{what} {path} cannot be read: {error.strerror}"
            if now != identity:
                return f"{what} {path} was replaced while the server runs; {_CURE}"
        if os.statvfs(self.path).f_flag & os.ST_RDONLY:
            return f"the home folder {self.path} is on a disk that is mounted read-only"
        for path in self._watched:
            if not os.access(path, os.W_OK):
                return f"in the home folder {path} cannot be written; give the server permission"
        return None

    def warning(self) -> str | None:
        """Return a warning if the disk is full."""
        try:
            free = shutil.disk_usage(self.path).free
        except OSError:
            return None
        if free >= _LEAST:
            return None
        return f"the disk of {self.path} is full ({free} bytes are left): uploads are refused"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Guard a block that stores something. Raises HomeUnusable if nothing can be stored, before
        the block or when it fails."""
        trouble = self.trouble()
        if trouble is not None:
            raise HomeUnusable(trouble)
        try:
            yield
        except OSError as error:
            if self.trouble() is None and not self._is_ours(error):
                raise
            raise self.unusable(error) from error

    def unusable(self, error: OSError) -> HomeUnusable:
        """Translate an operating system error."""
        why = self.trouble() or f"the home folder {self.path} cannot be used: {error}"
        return HomeUnusable(why)

    def close(self) -> None:
        self._file.close()

    def _is_ours(self, error: OSError) -> bool:
        if error.filename is None:
            return error.errno in (errno.EIO, errno.EROFS, errno.ENODEV, errno.ESTALE)
        return Path(os.fsdecode(error.filename)).is_relative_to(self.path)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
