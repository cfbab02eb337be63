"""Reads stored contents in a process that has no registry: the engine's.

The registry is in another process. It keeps a content's files while anybody has a lease on it.
Nothing is remembered here: the registry is told of files that are bad, and knows whether the home
folder itself is at fault.
"""

from __future__ import annotations

from pathlib import Path

from lorry_adapters.errors import AdapterBroken, InvalidAdapter
from lorry_adapters.lora import room, spot_check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import AdapterWeights, load
from lorry_adapters.registry.blobs import folder_in, intact


class ContentReader:
    """Thread-safe. The reason in an AdapterBroken with `bad_files` has no advice yet."""

    def __init__(self, home: Path, layout: BaseLayout) -> None:
        self._home = home
        self._layout = layout

    def load(self, digest: str) -> AdapterWeights:
        """The weights of a content that somebody holds.

        Raises:
            AdapterBroken, OutOfMemory.
        """
        folder = folder_in(self._home, digest)
        try:
            if intact(folder, digest):
                with room.named(f"loading the adapter {digest}"):
                    weights = load(folder, digest, self._layout)
                    spot_check.check(folder, weights)
                    return weights
        except InvalidAdapter as error:
            why = f"its files no longer load: {error.message}"
            raise AdapterBroken(why, bad_files=digest) from error
        except OSError as error:
            # Perhaps only for now (too many open files, a network disk).
            raise AdapterBroken(
                f"the adapter {digest} cannot be read: {error}; try again, or upload it again"
            ) from error
        raise AdapterBroken("its files are missing or were changed on disk", bad_files=digest)
