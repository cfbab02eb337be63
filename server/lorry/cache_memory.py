"""How much memory the KV cache, the host cache and all adapters together may take: what the
settings say, or the usual amount, and less of it if memory is short.

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


def for_adapters(settings: Settings, free: int, kv_cache: int) -> int:
    """Return the most bytes of all adapters in memory, those of the host cache included. `free`:
    bytes that are left where the slots will be; `kv_cache`: how many of them that will take."""
    if settings.adapter_memory is not None:
        return settings.adapter_memory
    usual = max(free - kv_cache, free // 2) // 2
    if settings.host_cache_memory is None:
        return usual
    # What was asked for is not taken away again.
    return max(usual, settings.host_cache_memory + usual // 2)
