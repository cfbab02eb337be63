"""A small file that reserves space, so that adapters can be removed from a full disk.

The catalog must write to record a removal, and cannot on a full disk: the very call that would make
room would be refused. So this file is kept, and deleted in that case.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BYTES: Final = 1 << 18
"""Enough for dozens of the catalog's transactions."""


class Reserve:
    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Create the file if the disk has room for it; not an error otherwise."""
        try:
            # A crash may have left a part of it.
            if self._path.stat().st_size == _BYTES:
                return
        except FileNotFoundError:
            pass
        except OSError:
            return
        try:
            # Random bytes: a file system with compression would reserve nothing for zeros.
            self._path.write_bytes(os.urandom(_BYTES))
        except OSError:
            self.spend()

    def spend(self) -> bool:
        """Delete it. Return False if there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
