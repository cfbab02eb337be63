"""One server per home folder: the registry's view in memory is only right when alone."""

from __future__ import annotations

import fcntl
from pathlib import Path

from lorry_adapters.errors import HomeUnusable


class HomeLock:
    """Held from construction to `close`; the system drops it when the process dies."""

    def __init__(self, home: Path) -> None:
        """HomeUnusable: another process holds it, or `home` cannot be written."""
        path = home / "lock"
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise HomeUnusable(f"cannot write to the home folder {home}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise HomeUnusable(
                f"another server uses the home folder {home}; stop it, or choose another --home"
            ) from error
        except OSError as error:
            self._file.close()
            raise HomeUnusable(f"cannot lock {path}: {error}") from error

    def close(self) -> None:
        self._file.close()
