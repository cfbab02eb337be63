"""A small JSON file in the home folder: replaced as a whole, never half written, and checked when
read.

A crash leaves either the old text or the new one. Anything else, from a disk error, an editor or an
older server, raises DamagedDocument in `read`, so that the caller can go on without it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

UNFINISHED: Final = ".new"
"""Suffix of files that were not renamed to their names yet; a crash may leave one."""


class DamagedDocument(ValueError):
    """The text was not written by `write`."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A text that is on disk under a temporary name."""

    path: Path
    written: Path

    def put(self) -> None:
        """Rename it, so that `read` returns it from now on. Raises OSError."""
        os.rename(self.written, self.path)
        sync(self.path.parent)

    def drop(self) -> None:
        self.written.unlink(missing_ok=True)


def prepare(path: Path, value: object) -> Pending:
    """Write `value` beside `path`, with one writer at a time. Raises OSError and leaves nothing."""
    pending = Pending(path, path.with_name(path.name + UNFINISHED))
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    try:
        with pending.written.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        pending.drop()
        raise
    return pending


def write(path: Path, value: object) -> None:
    """Make `value` the content of `path`, on disk when this returns. Raises OSError."""
    pending = prepare(path, value)
    try:
        pending.put()
    except OSError:
        pending.drop()
        raise


def read(path: Path) -> dict[str, Any] | list[Any] | None:
    """Return None if there is no such file. Raises DamagedDocument, and OSError from reading."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedDocument(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict | list):
        raise DamagedDocument(f"{path} is damaged: it contains {str(value)[:40]!r}")
    return value


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
