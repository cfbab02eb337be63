"""What this process has asked of the object store since it began."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum


class Operation(StrEnum):
    READ = "read"
    WRITE = "write"
    LIST = "list"
    DELETE = "delete"


@dataclass(slots=True)
class StoreCount:
    """The calls of one operation."""

    ok: int = 0
    """Those that the store answered, also with "there is no such file"."""
    failed: int = 0
    seconds: float = 0.0
    """Of all calls."""
    bytes: int = 0
    """Read or written by the calls that are `ok`."""


@dataclass(slots=True)
class StoreCall:
    bytes: int = 0
    """Set by the caller once they are read or written."""


class StoreCounts:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {operation: StoreCount() for operation in Operation}

    @contextmanager
    def counting(self, operation: Operation) -> Iterator[StoreCall]:
        """Count the block as one call, which failed if the block raises."""
        call, ok = StoreCall(), False
        began = time.monotonic()
        try:
            yield call
            ok = True
        finally:
            seconds = time.monotonic() - began
            with self._lock:
                count = self._counts[operation]
                count.seconds += seconds
                if ok:
                    count.ok += 1
                    count.bytes += call.bytes
                else:
                    count.failed += 1

    def now(self) -> Mapping[Operation, StoreCount]:
        """Return a copy."""
        with self._lock:
            return {operation: replace(count) for operation, count in self._counts.items()}
