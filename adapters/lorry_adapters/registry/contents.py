"""Reference counts of contents: their owners (versions of adapters) and their holds.

A hold is a request's lease, a load from disk or an upload in progress. A content with neither
owner nor hold is free, and its files and copies are deleted. This module does no locking and no
I/O; the registry calls it under its one lock.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from lorry_adapters.registry.record import MERGED


@dataclass(slots=True)
class Content:
    owners: set[tuple[str, int]] = field(default_factory=set)
    """Names and versions."""
    holds: int = 0
    broken: str | None = None
    """The reason why it cannot be served."""
    ours: bool = False
    """True if the content has had an owner, or its files arrived with a hold. Otherwise files on
    disk belong to a content without a record, and a refused upload must not delete them."""
    generation: int = 0
    """Raised when the files are replaced, so that a load which failed on the old ones does not mark
    the new ones broken."""


class ContentIndex:
    def __init__(self) -> None:
        self._by_digest: dict[str, Content] = {}

    def find(self, digest: str) -> Content | None:
        return self._by_digest.get(digest)

    def known(self, digest: str) -> Content:
        """Return the content of a digest that certainly has an owner or a hold."""
        return self._by_digest[digest]

    def digests(self) -> tuple[str, ...]:
        return tuple(self._by_digest)

    def in_use(self) -> tuple[str, ...]:
        return tuple(digest for digest, content in self._by_digest.items() if content.holds)

    def named(self, digest: str) -> set[tuple[str, int]]:
        """Return the owners that are versions of adapters."""
        content = self._by_digest.get(digest, Content())
        return {owner for owner in content.owners if owner[0] != MERGED}

    def own(self, digest: str, name: str, version: int) -> Content:
        content = self._by_digest.setdefault(digest, Content())
        content.owners.add((name, version))
        content.ours = True
        return content

    def disown(self, digest: str, name: str, version: int) -> bool:
        """Return true if nothing else keeps the content, so that it must be freed."""
        self._by_digest[digest].owners.remove((name, version))
        return self._forget_if_free(digest)

    def hold(self, digest: str) -> None:
        self._by_digest.setdefault(digest, Content()).holds += 1

    def give_back(self, digests: Collection[str]) -> list[str]:
        """Release one hold on each, and return those that nothing keeps any more."""
        freed = []
        for digest in digests:
            content = self._by_digest[digest]
            assert content.holds > 0, digest
            content.holds -= 1
            if self._forget_if_free(digest):
                freed.append(digest)
        return freed

    def holds(self) -> int:
        return sum(content.holds for content in self._by_digest.values())

    def _forget_if_free(self, digest: str) -> bool:
        content = self._by_digest[digest]
        if content.owners or content.holds:
            return False
        del self._by_digest[digest]
        return content.ours
