"""Reads stored contents in the engine's own process, which has no registry.

The registry is in the server's process. It keeps a content's files while there is a lease on it.
This reader remembers nothing: the registry learns of bad files from its errors and decides
whether the home folder itself is at fault.
"""

from __future__ import annotations

from pathlib import Path

from lorry_adapters.errors import AdapterBroken, InvalidAdapter, Problem
from lorry_adapters.lora import room, spot_check
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.weights import AdapterWeights, load
from lorry_adapters.registry.blobs import folder_in, intact


class ContentReader:
    """Thread-safe. The message of an AdapterBroken with `bad_files` is only the reason: the
    registry adds the adapter's name and the advice."""

    def __init__(self, home: Path, layout: BaseLayout) -> None:
        self._home = home
        self._layout = layout

    def load(self, digest: str) -> AdapterWeights:
        """Return the weights of a content on which there is a lease.

        Raises:
            AdapterBroken: with `bad_files` if the files are at fault.
            OutOfMemory: there is too little memory to read them now.
        """
        folder = folder_in(self._home, digest)
        try:
            if intact(folder, digest):
                with room.named(f"loading the adapter {digest}"):
                    weights = load(folder, digest, self._layout)
                    spot_check.check(folder, weights)
                    return weights
        except InvalidAdapter as error:
            why = Problem.within(f"its files no longer load: {error.message}", error.message)
            raise AdapterBroken(why, bad_files=digest) from error
        except OSError as error:
            # It may be temporary (too many open files, a network disk).
            raise AdapterBroken(
                f"the adapter {digest} cannot be read: {error}; try again, or upload it again"
            ) from error
        raise AdapterBroken("its files are missing or were changed on disk", bad_files=digest)
