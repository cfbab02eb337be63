"""Where an adapter's weights are now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorry.core import EngineStats
from lorry_adapters.registry.record import StorageTier


@dataclass(frozen=True, slots=True)
class Residencies:
    stats: Callable[[], EngineStats]
    in_host_cache: Callable[[str], bool]

    def of(self, digest: str) -> str:
        """Return the nearest of them."""
        if digest in self.stats().resident:
            return StorageTier.DEVICE.value
        if self.in_host_cache(digest):
            return StorageTier.HOST.value
        return StorageTier.DISK.value
