"""What the registry's tests share."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.registry import cached_blobs
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter
from support.registries import Files, Open


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def reopen(home: Path) -> Iterator[Open]:
    """Opens the registry of `home`, closing the one before."""
    opened: list[Registry] = []

    def open_it(base: BaseLayout | None = None, **options: Any) -> Registry:
        if opened:
            opened.pop().close()
        given = {"max_rank": 8, "max_upload": 1 << 20, "max_host_bytes": 1 << 20} | options
        opened.append(Registry(home, base or layout(), **given))
        return opened[-1]

    yield open_it
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(reopen: Open) -> Registry:
    return reopen(reserved_names=frozenset({"smol"}))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return lambda seed: save_adapter(tmp_path / "files" / str(seed), seed)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    return tmp_path / "upload"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def stored(reopen: Open, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """Opens the registry of `home` with the store."""
    monkeypatch.setattr(cached_blobs, "RETRY", 0.01)
    monkeypatch.setattr(cached_blobs, "PROBE", 0.05)

    def open_it(max_bytes: int | None = None, **options: Any) -> Registry:
        make = partial(
            CachedBlobs, url=f"file://{bucket}", max_content=1 << 20, max_bytes=max_bytes
        )
        return reopen(make_blobs=make, **options)

    return open_it
