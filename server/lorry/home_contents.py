"""The adapters' files as the settings say: in the home folder, or in a store as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lorry.settings import Settings
from lorry_adapters.registry.blobs import Blobs
from lorry_adapters.registry.cached_blobs import CachedBlobs


def opener(settings: Settings) -> Callable[[Path], Blobs]:
    """Return what opens the contents of a home folder. It raises HomeUnusable."""
    if settings.store is None:
        return Blobs
    return partial(
        CachedBlobs,
        url=settings.store,
        max_content=settings.max_upload,
        max_bytes=settings.store_cache,
    )
