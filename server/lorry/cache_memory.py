"""How much memory the two caches may take: what the settings say, or the usual amount, and less of
it if memory is short.

In a container with 2 GB the usual amounts would exceed its limit, and the kernel would kill the
server in the middle of somebody's request.
"""

from __future__ import annotations

from typing import Final

from lorry.settings import Settings

USUAL_KV: Final = 2 << 30
USUAL_HOST: Final = 1 << 30


def for_kv_cache(settings: Settings, free: int) -> int:
    """Return the bytes of the KV cache. `free`: bytes that are left where it will be."""
    if settings.kv_cache_memory is not None:
        return settings.kv_cache_memory
    return min(USUAL_KV, free // 2)


def for_host_cache(settings: Settings, free: int) -> int:
    """Return the most bytes of the host cache. `free`: bytes of host memory that are left, the KV
    cache not subtracted."""
    if settings.host_cache_memory is not None:
        return settings.host_cache_memory
    return min(USUAL_HOST, free // 4)
