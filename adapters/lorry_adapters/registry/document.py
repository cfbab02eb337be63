"""A small JSON file in the home: replaced whole, never half written, read with doubt.

A crash leaves the old text or the new one. What a disk, an editor or an older server left
there instead is told by `read` as `Damaged`, for the caller to go on without it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

UNFINISHED: Final = ".new"
"""Ends the names of files that are not in their places yet; a crash may leave one."""


class DamagedDocument(ValueError):
    """Its text is not what `write` wrote."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A text that is on the disk and not in its place yet."""

    path: Path
    written: Path

    def put(self) -> None:
        """From now on it is what `read` gives. OSError."""
        os.rename(self.written, self.path)
        sync(self.path.parent)

    def drop(self) -> None:
        self.written.unlink(missing_ok=True)


def prepare(path: Path, value: object) -> Pending:
    """Write `value` beside `path`, for one writer at a time. OSError, and nothing is left."""
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
    """Make `value` the content of `path`, on disk when this returns. OSError."""
    pending = prepare(path, value)
    try:
        pending.put()
    except OSError:
        pending.drop()
        raise


def read(path: Path) -> dict[str, Any] | list[Any] | None:
    """None: there is no such file. Damaged; OSError as reading does."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedDocument(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict | list):
        raise DamagedDocument(f"{path} is damaged: it holds {str(value)[:40]!r}")
    return value


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
