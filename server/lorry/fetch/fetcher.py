"""Fetches the files of an adapter into a folder, by the kind of its source."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from lorry.errors import SourceFailed
from lorry.fetch import buckets
from lorry.fetch.allowed import Allowed
from lorry.fetch.download import Downloader, Progress, Wanted
from lorry.fetch.source_text import BucketSource, HttpsSource
from lorry_adapters.errors import UnsupportedUpload
from lorry_adapters.lora.config import MAX_CONFIG
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE
from lorry_adapters.lora.words import MAX_FILE, SOURCES
from lorry_adapters.registry.archive import Upload

_OVERHEAD = 256 << 10
"""Bytes of an archive beyond the files in it."""

Read = Callable[..., Awaitable[bool]]
"""(name, limit=…, cut=…): write the file of a folder; False if it is absent."""


class NothingThere(UnsupportedUpload):
    """The place is no PEFT folder: it has no config."""


class Fetcher:
    def __init__(
        self,
        allowed: Allowed,
        downloader: Downloader,
        *,
        max_upload: int,
        timeout: float,
        hub_token: str | None = None,
    ) -> None:
        """`max_upload`: bytes of an adapter. `timeout`: seconds for all of it. `hub_token`: for the
        hub's endpoint alone."""
        self._allowed = allowed
        self._downloader = downloader
        self._max_upload = max_upload
        self._timeout = timeout
        self._hub_token = hub_token

    def check(self, source: HttpsSource | BucketSource) -> None:
        """Raises ForbiddenSource if the operator does not allow the source."""
        if isinstance(source, BucketSource):
            self._allowed.check_bucket(source.shown)
        else:
            self._allowed.check_host(source.address.host, source.address.port)

    async def fetch(
        self, source: HttpsSource | BucketSource, folder: Path, progress: Progress
    ) -> Upload:
        """Return the files, which are in `folder`.

        Raises ForbiddenSource, SourceFailed, UploadTooLarge, UnsupportedUpload,
        UnsupportedParameter, and OSError from writing.
        """
        self.check(source)
        try:
            async with asyncio.timeout(self._timeout):
                if isinstance(source, BucketSource):
                    return await self._from_bucket(source, folder, progress)
                return await self._from_https(source, folder, progress)
        except TimeoutError:
            raise SourceFailed(
                f"fetching {source.shown} took longer than {self._timeout:g} s (--fetch-timeout)"
            ) from None

    async def _from_https(self, source: HttpsSource, folder: Path, progress: Progress) -> Upload:
        token = self._hub_token if source.is_hub else None
        if source.is_archive:
            archive, limit = folder / "archive", self._max_upload + _OVERHEAD
            wanted = Wanted(source.address, archive, limit, token=token)
            await self._downloader.download(wanted, progress)
            return Upload(archive=archive)

        async def read(name: str, *, limit: int, cut: bool) -> bool:
            at = source.file(name)
            wanted = Wanted(at, folder / name, limit, cut=cut, optional=True, token=token)
            return await self._downloader.download(wanted, progress)

        return await _folder(source.shown, folder, self._max_upload, read)

    async def _from_bucket(self, source: BucketSource, folder: Path, progress: Progress) -> Upload:
        store = await buckets.open_store(source)
        read = partial(buckets.read_file, store, source.scheme)
        if source.is_archive:
            archive, limit = folder / "archive", self._max_upload + _OVERHEAD
            if not await read(source.path, archive, progress, limit=limit, cut=False):
                raise SourceFailed(f"{source.shown} does not exist")
            return Upload(archive=archive)

        async def named(name: str, *, limit: int, cut: bool) -> bool:
            path = f"{source.path}/{name}"
            return await read(path, folder / name, progress, limit=limit, cut=cut)

        return await _folder(source.shown, folder, self._max_upload, named)


async def _folder(shown: str, folder: Path, max_upload: int, read: Read) -> Upload:
    """Read the files of a PEFT folder one by one."""
    if not await read(CONFIG_FILE, limit=MAX_CONFIG, cut=False):
        raise NothingThere(f"{shown} has no {CONFIG_FILE}", param="source")
    if not await read(WEIGHTS_FILE, limit=max_upload, cut=False):
        raise UnsupportedUpload(f"{shown} has no {WEIGHTS_FILE}", param="source")
    # One byte more than is read of such a file, which shows that there is more.
    words = {
        name: folder / name for name in SOURCES if await read(name, limit=MAX_FILE + 1, cut=True)
    }
    return Upload(config=folder / CONFIG_FILE, weights=folder / WEIGHTS_FILE, words=words)
