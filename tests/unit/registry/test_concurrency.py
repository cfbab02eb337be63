"""Requests take and give back while others add, replace, disable and remove."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lorry_adapters.errors import (
    AdapterConflict,
    AdapterDisabled,
    DigestMismatch,
    InvalidSelection,
    UnknownAdapter,
)
from lorry_adapters.registry import intake as intake_module
from lorry_adapters.registry import weight_loader
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.patience import PATIENCE

NAMES = ("a", "b", "c")
SEEDS = range(4)


def open_registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home", layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=600)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path)


def together(*jobs: Callable[[], None]) -> None:
    """Run all, each in its thread; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def janitors() -> set[int | None]:
    """Of every registry of this process: a server that other tests share has one, too."""
    every = threading.enumerate()
    return {thread.ident for thread in every if thread.name == "lorry-blob-janitor"}


def test_every_lease_can_be_served_and_nothing_is_left(tmp_path: Path) -> None:
    others = janitors()
    registry = open_registry(tmp_path)
    assert len(janitors()) == len(others) + 1
    folders = [save_adapter(tmp_path / str(seed), seed) for seed in SEEDS]
    digests = {digest_of(folder) for folder in folders}
    gone: list[str] = []
    registry.subscribe(gone.append)
    done = threading.Event()
    served = [0]

    def reader(seed: int) -> None:
        chance = random.Random(seed)
        while not done.is_set():
            names = chance.sample(NAMES, chance.randint(1, 2))
            try:
                lease = registry.acquire([AdapterChoice(name) for name in names])
            except (UnknownAdapter, AdapterDisabled, DigestMismatch, InvalidSelection):
                continue
            for ref in lease.refs:
                # The digest is that of what the disk holds, so the right weights follow.
                assert registry.weights(ref.digest).digest == ref.digest
                assert ref.digest in digests
                assert digest_of(registry.folder(ref.digest)) == ref.digest
            served[0] += 1
            lease.release()
            lease.release()

    def writer(seed: int) -> None:
        chance = random.Random(100 + seed)
        for turn in range(5000):
            # On a busy machine the readers may come late.
            if turn >= 25 and served[0]:
                break
            name = chance.choice(NAMES)
            what = chance.choice(("add", "add", "put", "patch", "remove", "remove version"))
            try:
                if what == "add":
                    registry.add(
                        name, upload(chance.choice(folders)), replace=chance.random() < 0.5
                    )
                elif what == "put":
                    registry.put(name, upload(chance.choice(folders)))
                elif what == "patch":
                    registry.patch(
                        name, enabled=chance.random() < 0.8, pinned=chance.random() < 0.3
                    )
                elif what == "remove":
                    registry.remove(name)
                else:
                    registry.remove(name, version=registry.get(name).versions[0].version)
            except (UnknownAdapter, AdapterConflict):
                pass

    def writers() -> None:
        try:
            together(*[lambda seed=seed: writer(seed) for seed in range(3)])  # type: ignore[misc]
        finally:
            done.set()

    together(writers, *[lambda seed=seed: reader(seed) for seed in range(6)])  # type: ignore[misc]
    assert served[0] > 0

    for record in registry.records():
        registry.remove(record.name)
    assert registry.open_leases() == 0
    assert registry.host_cache_stats().entries == 0
    registry.close()
    assert list((tmp_path / "home" / "blobs").iterdir()) == []
    assert list((tmp_path / "home" / "staging").iterdir()) == []
    assert set(gone) <= digests
    assert janitors() == others


def test_one_lease_given_back_by_many_threads_counts_once(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add("a", upload(save_adapter(tmp_path / "0", 0)))
    digest = registry.get("a").current.digest
    for _ in range(50):
        lease = registry.acquire([AdapterChoice("a")])
        other = registry.acquire([AdapterChoice("a")])
        # As if all had seen it unreleased before the first gave it back.
        together(*[lease._give_back] * 4)
        assert registry.open_leases() == 1
        other.release()
    assert registry.weights(digest)
    registry.close()


def test_a_removal_waits_for_a_load(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.add("a", upload(save_adapter(tmp_path / "0", 0)))[0].current.digest
    gone: list[str] = []
    registry.subscribe(gone.append)
    load = weight_loader.load

    def removed_meanwhile(*args: object) -> object:
        registry.remove("a")
        assert gone == []
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(weight_loader, "load", removed_meanwhile)
    assert registry.weights(digest).digest == digest
    assert gone == [digest]
    assert not registry.in_host_cache(digest)
    registry.close()


def test_compare_and_swap_looks_again_after_reading_the_upload(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [save_adapter(tmp_path / str(seed), seed) for seed in range(3)]
    digest = registry.add("a", upload(folders[0]))[0].current.digest
    inspect = intake_module.inspect

    def another_came_first(*args: object) -> object:
        monkeypatch.undo()
        registry.put("a", upload(folders[1]), if_match=digest)
        return inspect(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(intake_module, "inspect", another_came_first)
    with pytest.raises(DigestMismatch):
        registry.put("a", upload(folders[2]), if_match=digest)
    assert registry.get("a").current.digest == digest_of(folders[1])
    registry.close()


def test_a_failed_load_does_not_break_what_was_uploaded_meanwhile(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_adapter(tmp_path / "0", 0)
    digest = registry.add("a", upload(folder))[0].current.digest
    weights = registry.folder(digest) / "adapter_model.safetensors"
    weights.write_bytes(b"rotten")
    intact = registry._blobs.intact

    def mended_meanwhile(digest: str) -> bool:
        found = intact(digest)
        if not found:
            monkeypatch.undo()
            registry.add("a", upload(folder))
        return found

    monkeypatch.setattr(registry._blobs, "intact", mended_meanwhile)
    assert registry.weights(digest).digest == digest
    assert registry.acquire([AdapterChoice("a")]).refs[0].digest == digest
    registry.close()
