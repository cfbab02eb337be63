"""Reads stored contents in the engine's own process, which has no registry.

The registry is in the server's process. It keeps a content's files while there is a lease on it.
This reader remembers nothing: the registry learns of bad files from its errors and decides
whether the home folder itself is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lorry_adapters.errors import AdapterBroken, InvalidAdapter, Problem
from lorry_adapters.lora import room, spot_check
from lorry_adapters.lora.adapter_size import AdapterSize
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import AdapterWeights, load, size_of
from lorry_adapters.registry.blobs import Blobs, folder_in, intact

Found = TypeVar("Found")


class ContentReader:
    """Thread-safe. The message of an AdapterBroken with `bad_files` is only the reason: the
    registry adds the adapter's name and the advice."""

    def __init__(
        self, home: Path, layout: BaseLayout, store: Callable[[], Blobs] | None = None
    ) -> None:
        """`store()` returns the home's contents with the store from which they are fetched."""
        self._home = home
        self._layout = layout
        self._store = store

    def load(self, digest: str) -> AdapterWeights:
        """Return the weights of a content on which there is a lease, fetched from the store if
        they are not here.

        Raises:
            AdapterBroken: with `bad_files` if the files are at fault.
            OutOfMemory: there is too little memory to read them now.
            StoreUnavailable, StorageFull, HomeUnusable: they cannot be fetched now.
        """

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
            try:
                found = self._found(folder_in(self._home, digest), digest, read)
            except InvalidAdapter as error:
                why = Problem.within(f"its files no longer load: {error.message}", error.message)
                raise AdapterBroken(why, bad_files=digest) from error
            except OSError as error:
                # It may be temporary (too many open files, a network disk).
                raise AdapterBroken(
                    f"the adapter {digest} cannot be read: {error}; try again, or upload it again"
                ) from error
            if found is not None:
                return found

    def _found(self, folder: Path, digest: str, read: Callable[[Path], Found]) -> Found | None:
        """Return None if the files left the cache meanwhile, as the request has ended."""
        if not intact(folder, digest) and not (self._store and self._store().fetch(digest)):
            raise AdapterBroken("its files are missing or were changed on disk", bad_files=digest)
        try:
            with room.named(f"loading the adapter {digest}"):
                return read(folder)
        except (InvalidAdapter, OSError):
            if self._store is None or folder.exists():
                raise
            return None
