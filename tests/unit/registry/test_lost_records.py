"""Contents of an object store whose records were lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorry_adapters.errors import AdapterConflict, InvalidAdapter, UnknownAdapter
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.object_store import COMPLETE, ObjectStore
from lorry_adapters.registry.registry import Registry
from support.adapter_files import upload
from support.registries import WEIGHTS, Files, leave_cache, with_lease


def test_what_only_the_store_has_becomes_an_adapter_again(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    """The home folder is lost."""
    registry = stored()
    records = [registry.add(f"a{n}", upload(files(n)))[0] for n in range(3)]
    digests = {record.current.digest for record in records}
    assert registry.unclaimed(in_store=True) == ()
    registry.close()
    shutil.rmtree(home)
    registry = stored()
    registry.add("a0", upload(files(0)))
    # Half a content is none.
    (bucket / records[2].current.digest.replace(":", "-") / COMPLETE).unlink()
    (found,) = registry.unclaimed(in_store=True)
    assert found.digest == records[1].current.digest
    assert found.bytes == sum(file.stat().st_size for file in files(1).iterdir())
    assert (found.since, found.until) == (None, None)
    assert registry.unclaimed() == () and registry.story() == ()
    # One that fails deletes nothing.
    with pytest.raises(AdapterConflict):
        registry.recover(found.digest, "a0")
    with pytest.raises(UnknownAdapter):
        registry.recover(records[2].current.digest)
    again = registry.recover(found.digest, "a1")
    assert again.current.digest == found.digest and found.digest in digests
    assert registry.unclaimed(in_store=True) == ()
    leave_cache(home)
    with_lease(registry, "a1")


def test_a_damaged_copy_in_the_store_is_not_recovered(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    digest = registry.add("a", upload(files(1)))[0].current.digest
    registry.close()
    shutil.rmtree(home)
    weights = bucket / digest.replace(":", "-") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    registry = stored()
    with pytest.raises(InvalidAdapter, match="damaged"):
        registry.recover(digest)
    # The same files repair it.
    registry.add("a", upload(files(1)))
    leave_cache(home)
    with_lease(registry, "a")


def test_what_is_being_removed_from_the_store_is_not_listed(
    stored: Callable[..., Registry], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = stored()
    monkeypatch.setattr(ObjectStore, "delete", lambda store, digest: None)
    monkeypatch.setattr(CachedBlobs, "_sweep", lambda *given: None)
    digest = registry.add("a", upload(files(1)))[0].current.digest
    registry.remove("a")
    assert registry.unclaimed(in_store=True) == ()
    with pytest.raises(UnknownAdapter):
        registry.recover(digest)
