"""A little disk space kept back, so that adapters can be removed from a disk that is full.

To record a removal the catalog must write, and on a full disk it cannot: the very call
that would make room would be refused. So a small file is kept, and given up for that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BYTES: Final = 1 << 18
"""Dozens of the catalog's transactions."""


class Reserve:
    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Make sure that it is there, as far as the disk has room; not an error if not."""
        try:
            # A crash may have left less of it.
            if self._path.stat().st_size == _BYTES:
                return
        except FileNotFoundError:
            pass
        except OSError:
            return
        try:
            # Random bytes: a file system that compresses would keep nothing back for zeros.
            self._path.write_bytes(os.urandom(_BYTES))
        except OSError:
            self.spend()

    def spend(self) -> bool:
        """Give it up. False: there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
