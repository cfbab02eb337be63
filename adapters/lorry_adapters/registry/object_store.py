"""Contents in an object store, by fsspec: S3 and the like, or a folder that servers share.

    <url>/lorry-store.json                    {"format": 1}
    <url>/sha256-<64 hex>/adapter_config.json
                          adapter_model.safetensors
                          adapter_words.json  (if there is one)
                          complete.json       {"adapter_config.json": 812, ...}: bytes

`complete.json` is written last and deleted first. A content without it is not in the store, so half
an upload is never believed. What is read must have the content's digest.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from lorry_adapters.errors import HomeUnusable, InvalidAdapter, StoreUnavailable
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE
from lorry_adapters.lora.words import WORDS_FILE
from lorry_adapters.registry.blobs import digest_of, files_in
from lorry_adapters.registry.store_counts import Operation, StoreCall, StoreCounts

COMPLETE: Final = "complete.json"
FORMAT_FILE: Final = "lorry-store.json"
FORMAT: Final = 1

CHUNK: Final = 8 << 20
"""Bytes of one request."""

_MAX_MARKER: Final = 4096
_FOLDER: Final = re.compile(r"sha256-[0-9a-f]{64}")

_OPTIONS: Final[Mapping[str, dict[str, Any]]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 20,
            "retries": {"total_max_attempts": 2},
        }
    },
    "file": {"auto_mkdir": True},
}

_EXTRAS: Final = ("s3", "gs")

Sizes = dict[str, int]
"""Bytes of each file."""


class ObjectStore:
    """Thread-safe, but not for two calls about one content."""

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. Raises HomeUnusable if nothing here can read such a URL."""
        self.url = url
        self.counts = StoreCounts()
        scheme = url.partition("://")[0]
        try:
            # Most starts have no store.
            fsspec = importlib.import_module("fsspec")
            options = dict(_OPTIONS.get(scheme, {}))
            self._fs, self._root = fsspec.url_to_fs(
                url, skip_instance_cache=True, use_listings_cache=False, **options
            )
        except ImportError as error:
            extra = f"lorry[{scheme}]" if scheme in _EXTRAS else "the package that it names"
            raise HomeUnusable(
                f"the store {url} needs an extra ({error}); install it with: pip install '{extra}'"
            ) from error
        except (ValueError, TypeError) as error:
            raise HomeUnusable(f"the store {url} cannot be opened: {error}") from error
        if hasattr(self._fs, "retries"):
            # s3fs repeats each call, and botocore each attempt.
            self._fs.retries = 2

    def check(self) -> None:
        """Raises StoreUnavailable if the store does not answer or cannot be written, and
        HomeUnusable if a newer version wrote it."""
        path = f"{self._root}/{FORMAT_FILE}"
        text = self._read(path, 0, _MAX_MARKER)
        if text is None:
            self._write(path, json.dumps({"format": FORMAT}).encode())
            return
        try:
            found = json.loads(text)["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreUnavailable(f"the store {self.url} has a damaged {FORMAT_FILE}") from error
        if found != FORMAT:
            raise HomeUnusable(
                f"the store {self.url} was written by a newer version of Lorry (format {found}); "
                "update this server, or choose another store"
            )

    def contents(self) -> dict[str, int]:
        """Return the bytes of each content that is complete. Raises StoreUnavailable."""
        with self._reached(Operation.LIST):
            try:
                found = self._fs.find(self._root, maxdepth=2, detail=True)
            except FileNotFoundError:
                return {}
        sizes: dict[str, Sizes] = {}
        for path, info in found.items():
            folder, name = ["", *path.split("/")][-2:]
            if _FOLDER.fullmatch(folder):
                sizes.setdefault(folder.replace("-", ":", 1), {})[name] = int(info["size"])
        return {
            digest: sum(files.values()) - files[COMPLETE]
            for digest, files in sizes.items()
            if COMPLETE in files
        }

    def sizes(self, digest: str) -> Sizes | None:
        """Return the files of a complete content, or None. Raises StoreUnavailable, and
        InvalidAdapter for a damaged `complete.json`."""
        text = self._read(self._path(digest, COMPLETE), 0, _MAX_MARKER)
        if text is None:
            return None
        try:
            found = json.loads(text)
            names = set(found)
            if not {CONFIG_FILE, WEIGHTS_FILE} <= names <= {CONFIG_FILE, WEIGHTS_FILE, WORDS_FILE}:
                raise ValueError(f"it names {', '.join(sorted(names))[:80]}")
            if not all(type(size) is int and size >= 0 for size in found.values()):
                raise ValueError("it has a size that is none")
        except (ValueError, TypeError) as error:
            raise self._damaged(digest, f"{COMPLETE} cannot be read: {error}") from error
        return dict(found)

    def put(self, digest: str, folder: Path) -> None:
        """Store the files of `folder`, whatever is there of them. Raises StoreUnavailable."""
        sizes = {name: (folder / name).stat().st_size for name in files_in(folder)}
        self._remove(self._path(digest, COMPLETE))
        for name, size in sizes.items():
            with self._reached(Operation.WRITE) as call:
                self._fs.put_file(str(folder / name), self._path(digest, name))
                call.bytes = size
        self._write(self._path(digest, COMPLETE), json.dumps(sizes).encode())

    def get(self, digest: str, folder: Path, *, limit: int) -> bool:
        """Write a content's files to the empty `folder`. Return False if it is not in the store.

        `limit`: bytes of all files. Raises StoreUnavailable, InvalidAdapter if the files in the
        store are not the content, and OSError from writing.
        """
        sizes = self.sizes(digest)
        if sizes is None:
            return False
        if sum(sizes.values()) > limit:
            raise InvalidAdapter(
                [
                    f"its copy in the store {self.url} has {sum(sizes.values())} bytes, more than "
                    f"the limit of {limit}"
                ]
            )
        for name, size in sizes.items():
            with (folder / name).open("xb") as out:
                for start in range(0, size, CHUNK):
                    end = min(start + CHUNK, size)
                    data = self._read(self._path(digest, name), start, end)
                    if data is None:
                        raise self._damaged(digest, f"{name} is missing")
                    if len(data) != end - start:
                        raise self._damaged(digest, f"{name} is shorter than it was")
                    out.write(data)
        found = digest_of(folder)
        if found != digest:
            raise self._damaged(digest, f"its files have the digest {found}")
        return True

    def delete(self, digest: str) -> None:
        """Remove a content, or what is left of one. Raises StoreUnavailable."""
        for name in (COMPLETE, CONFIG_FILE, WEIGHTS_FILE, WORDS_FILE):
            self._remove(self._path(digest, name))
        if self._fs.protocol in ("file", ("file", "local")):
            # Only there is an empty folder something.
            with suppress(OSError):
                self._fs.rmdir(f"{self._root}/{digest.replace(':', '-', 1)}")

    def _read(self, path: str, start: int, end: int) -> bytes | None:
        """Return the bytes from `start` to `end`, fewer if the file ends before, or None if there
        is no such file."""
        with self._reached(Operation.READ) as call:
            try:
                data: bytes = self._fs.cat_file(path, start=start, end=end)
            except FileNotFoundError:
                return None
            call.bytes = len(data)
            return data

    def _write(self, path: str, data: bytes) -> None:
        with self._reached(Operation.WRITE) as call:
            self._fs.pipe_file(path, data)
            call.bytes = len(data)

    def _remove(self, path: str) -> None:
        with self._reached(Operation.DELETE), suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _path(self, digest: str, name: str) -> str:
        return f"{self._root}/{digest.replace(':', '-', 1)}/{name}"

    def _damaged(self, digest: str, why: str) -> InvalidAdapter:
        return InvalidAdapter([f"its copy in the store {self.url} is damaged: {why}"])

    @contextmanager
    def _reached(self, operation: Operation) -> Iterator[StoreCall]:
        """Count a call, and name the store in errors of its back end, which may be of any class."""
        try:
            with self.counts.counting(operation) as call:
                yield call
        except Exception as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise StoreUnavailable(f"the store {self.url} cannot be used now: {said}") from error
