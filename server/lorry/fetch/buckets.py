"""Reads files of object stores by fsspec. Its back ends are extras: `lorry[s3]`, `lorry[gs]`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from lorry.errors import SourceFailed, UnsupportedParameter
from lorry.fetch.download import Progress
from lorry.fetch.source_text import BucketSource
from lorry_adapters.errors import UploadTooLarge

CHUNK = 8 << 20
"""Bytes of one request."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30}},
    "gs": {},
}


async def open_store(source: BucketSource) -> Any:
    """Return the file system of a source. Raises UnsupportedParameter without its extra."""
    try:
        import fsspec

        return await asyncio.to_thread(
            fsspec.filesystem,
            source.scheme,
            skip_instance_cache=True,
            use_listings_cache=False,
            **_OPTIONS[source.scheme],
        )
    except ImportError:
        raise UnsupportedParameter(
            f"source: {source.scheme}:// needs an extra; install it on the server with: "
            f"pip install 'lorry[{source.scheme}]'",
            param="source",
        ) from None


async def read_file(
    store: Any, scheme: str, path: str, to: Path, progress: Progress, *, limit: int, cut: bool
) -> bool:
    """Write a file of a store to `to`. Return False if it is absent.

    `cut`: a longer file ends at `limit` bytes. Raises UploadTooLarge, SourceFailed, and OSError
    from writing.
    """
    shown = f"{scheme}://{path}"
    try:
        info = await asyncio.to_thread(store.info, path)
    except FileNotFoundError:
        return False
    except Exception as error:
        raise _failed(shown, error) from error
    if info.get("type") != "file":
        return False
    size = int(info["size"])
    if size > limit and not cut:
        raise UploadTooLarge(f"{shown} is larger than the limit of {limit} bytes", param="source")
    size = min(size, limit)
    progress.announce(size)
    with to.open("xb") as out:
        for start in range(0, size, CHUNK):
            end = min(start + CHUNK, size)
            try:
                data = await asyncio.to_thread(store.cat_file, path, start=start, end=end)
            except Exception as error:
                raise _failed(shown, error) from error
            if len(data) != end - start:
                raise SourceFailed(f"{shown} changed while it was read")
            await asyncio.to_thread(out.write, data)
            progress.bytes += len(data)
    return True


def _failed(shown: str, error: Exception) -> SourceFailed:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return SourceFailed(f"{shown} cannot be read: {said}")
