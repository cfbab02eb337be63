"""New contents: unpacked or merged, verified, and held until they are stored.

Everything is checked in a staging folder before any visible change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lorry_adapters.lora import room, words
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.merge import Part, Recipe, merge
from lorry_adapters.lora.weights import WhyNever, inspect
from lorry_adapters.registry.archive import Upload, unpack
from lorry_adapters.registry.blobs import digest_of, size_of, storage_full_named
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.inventory import Inventory
from lorry_adapters.registry.record import AdapterRef
from lorry_adapters.registry.revision import Staged
from lorry_adapters.registry.startup_check import fingerprint
from lorry_adapters.registry.storage import Storage

_log = logging.getLogger(__name__)


class Intake:
    """Thread-safe, except `publish`, which only the registry's one writer calls."""

    def __init__(
        self,
        home: Path,
        layout: BaseLayout,
        storage: Storage,
        inventory: Inventory,
        max_rank: int,
        max_upload: int,
        why_never: WhyNever,
    ) -> None:
        """`max_upload`: the largest size of an adapter's unpacked files, in bytes. `why_never`: see
        `inspect`."""
        self._home = home
        self._layout = layout
        self._fingerprint = fingerprint(layout)
        self._storage = storage
        self._blobs = storage.blobs
        self._inventory = inventory
        self._max_rank = max_rank
        self._max_upload = max_upload
        self._why_never = why_never

    @contextmanager
    def staged(self, upload: Upload) -> Iterator[Staged]:
        """Yield an upload's content, held during the block and in the store if there is one.

        Raises InvalidAdapter, UploadTooLarge, StorageFull, OutOfMemory, StoreUnavailable."""
        with self._storage.staging() as folder:
            with storage_full_named(self._home), room.named("unpacking the upload"):
                unpack(upload, folder, max_bytes=self._max_upload)
            with self._verified(folder) as new:
                broken = self._inventory.why_broken(new.digest) is not None
                self._blobs.put(new.digest, new.folder, anew=broken)
                yield new

    @contextmanager
    def merged(self, parts: Sequence[tuple[AdapterRef, float]], recipe: Recipe) -> Iterator[Staged]:
        """Yield the merge of `parts` at their weights, held during the block. `parts` must be held.

        Raises InvalidAdapter if they cannot be merged, ToolError for a weight, StorageFull.
        """
        with self._storage.staging() as folder:
            sources = [
                Part(self._blobs.present(ref.digest), weight, ref.name) for ref, weight in parts
            ]
            with storage_full_named(self._home), room.named("merging the adapters"):
                merge(sources, recipe).write(folder)
            with self._verified(folder) as new:
                yield new

    def publish(self, new: Staged) -> None:
        """Publish the files atomically. They also replace damaged ones."""
        for warning in new.facts.warnings:
            _log.warning("%s: %s", new.digest, warning)
        came_in = self._storage.publish(new.folder, new.digest)
        self._inventory.mend(new.digest, came_in=came_in)

    @contextmanager
    def _verified(self, folder: Path) -> Iterator[Staged]:
        with room.named("checking the adapter"):
            facts = inspect(folder, self._layout, self._max_rank, self._why_never)
        found, passed_over = words.read(folder)
        with storage_full_named(self._home):
            words.write(found, folder)
        facts = replace(facts, warnings=(*facts.warnings, *passed_over))
        self._blobs.seal(folder)
        digest = digest_of(folder)
        stored = StoredContent(digest, size_of(folder), self._fingerprint)
        with self._inventory.admitting(digest):
            yield Staged(folder, digest, facts, found.brings, stored)
