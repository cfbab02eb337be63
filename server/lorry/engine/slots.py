"""The scheduler's view of adapters and slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Residency(Protocol):
    def acquire(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        """Pin all of `digests` in slots. Return None and pin nothing if they are not ready.

        Raises:
            AdapterError: one of them cannot be loaded, now or ever.
        """
        ...

    def release(self, digests: Sequence[str]) -> None: ...

    def prefetch(self, digests: Sequence[str]) -> None:
        """Announce the digests wanted next, the most urgent first, so that they can be fetched.
        Digests announced earlier and not among them may be dropped."""
        ...
