"""Reads stored contents for the host cache, checks them, and marks those that cannot be served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lorry_adapters.errors import AdapterBroken, HomeUnusable, InvalidAdapter, Problem
from lorry_adapters.lora import room, spot_check
from lorry_adapters.lora.adapter_size import AdapterSize
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import AdapterWeights, load, size_of
from lorry_adapters.registry.inventory import Inventory
from lorry_adapters.registry.startup_check import FILES_GONE
from lorry_adapters.registry.storage import Storage

Found = TypeVar("Found")


class Loader:
    """Thread-safe."""

    def __init__(self, layout: BaseLayout, storage: Storage, inventory: Inventory) -> None:
        self._layout = layout
        self._storage = storage
        self._blobs = storage.blobs
        self._inventory = inventory

    def load(self, digest: str) -> AdapterWeights:
        """Return the weights of a held content, fetched from the store if they are not here.

        Raises AdapterBroken, HomeUnusable, OutOfMemory, StorageFull or StoreUnavailable."""

        def read(folder: Path) -> AdapterWeights:
            weights = load(folder, digest, self._layout)
            spot_check.check(folder, weights)
            return weights

        return self._read(digest, read)

    def size(self, digest: str) -> AdapterSize:
        """Return what its memory depends on, and read no tensor. Raises as `load` does."""
        return self._read(digest, lambda folder: size_of(folder, self._layout))

    def _read(self, digest: str, read: Callable[[Path], Found]) -> Found:
        while True:
            generation = self._inventory.generation(digest)
            try:
                if self._blobs.intact(digest) or self._blobs.fetch(digest):
                    folder = self._blobs.folder(digest)
                    # Not remembered: there may be enough memory later.
                    with room.named(f"loading the adapter {digest}"):
                        return read(folder)
                why = FILES_GONE
            except InvalidAdapter as error:
                said = f"its files no longer load: {error.message}; upload it again"
                why = Problem.within(said, error.message)
            except OSError as error:
                # It may be temporary (too many open files, a network disk), so it is not
                # remembered.
                raise AdapterBroken(
                    f"the adapter {digest} cannot be read: {error}; try again, or upload it again"
                ) from error
            trouble = self._storage.trouble()
            if trouble is not None:
                # The files may be fine: they are there again if the disk comes back.
                raise HomeUnusable(trouble)
            broken = self._inventory.mark_files_broken(digest, why, generation)
            if broken is not None:
                raise broken
