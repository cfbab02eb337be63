"""Merged contents: made once, kept while they are used, gone without a trace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lorry_adapters.errors import (
    AdapterBroken,
    AdapterDisabled,
    InvalidAdapter,
    InvalidSelection,
    UnknownAdapter,
)
from lorry_adapters.lora.merge import Part, Recipe, merge
from lorry_adapters.registry import intake as intake_module
from lorry_adapters.registry.inventory import Inventory
from lorry_adapters.registry.merges import Merges
from lorry_adapters.registry.record import MERGED, AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload

LINEAR = Recipe("linear")
BOTH = [(AdapterChoice("one"), 0.7), (AdapterChoice("two"), 0.3)]


def opened(home: Path) -> Registry:
    return Registry(home, layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=1 << 20)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    one = opened(tmp_path / "home")
    for seed, name in enumerate(("one", "two")):
        one.add(name, upload(save_adapter(tmp_path / name, seed)), scale=0.5)
    yield one
    one.close()


def test_it_is_what_the_tool_makes(registry: Registry, tmp_path: Path) -> None:
    choice, of = registry.merged(BOTH, LINEAR)
    assert [ref.name for ref in of] == ["one", "two"]
    parts = [Part(tmp_path / name, weight, name) for name, weight in (("one", 0.7), ("two", 0.3))]
    expected = merge(parts, LINEAR).tensors
    lease = registry.acquire([choice])
    (ref,) = lease.refs
    assert (ref.name, ref.version, ref.scale) == (MERGED, 0, 1.0)
    for module, pair in registry.weights(ref.digest).modules.items():
        key = f"base_model.model.{module}"
        assert torch.equal(pair.a_RI, expected[f"{key}.lora_A.weight"])
        assert torch.equal(pair.b_OR, expected[f"{key}.lora_B.weight"])
        assert pair.scaling == 1
    lease.release()


def test_the_same_is_made_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(intake_module, "merge", lambda *given: made.append(given) or merge(*given))
    first, _ = registry.merged(BOTH, LINEAR)
    again, _ = registry.merged(BOTH, LINEAR)
    other, _ = registry.merged([BOTH[0], (AdapterChoice("two"), 0.4)], LINEAR)
    assert first == again != other
    assert len(made) == 2


def test_the_merge_of_many_threads_is_made_once(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(intake_module, "merge", lambda *given: made.append(given) or merge(*given))
    found: list[AdapterChoice] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.merged(BOTH, LINEAR)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(made) == 1
    assert registry.open_leases() == 0


def test_it_is_listed_nowhere_and_gone_after_a_restart(registry: Registry, tmp_path: Path) -> None:
    choice, _ = registry.merged(BOTH, LINEAR)
    assert choice.digest is not None
    assert [record.name for record in registry.records()] == ["one", "two"]
    with pytest.raises(UnknownAdapter):
        registry.get(MERGED)
    folder = registry.folder(choice.digest)
    assert folder.is_dir()
    registry.close()
    again = opened(tmp_path / "home")
    try:
        assert not folder.exists()
        assert [record.name for record in again.records()] == ["one", "two"]
    finally:
        again.close()


def test_its_parts_are_asked_for_every_time(registry: Registry) -> None:
    registry.merged(BOTH, LINEAR)
    registry.patch("two", enabled=False)
    with pytest.raises(AdapterDisabled):
        registry.merged(BOTH, LINEAR)
    registry.remove("two")
    with pytest.raises(UnknownAdapter):
        registry.merged(BOTH, LINEAR)
    assert registry.open_leases() == 0


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([("one", 1.0), ("one", 1.0)], InvalidSelection),
        ([("one", 1.0), ("three", 1.0)], InvalidAdapter),
    ],
    ids=["twice", "other rank"],
)
def test_what_cannot_be_merged_is_refused(parts, error, registry: Registry, tmp_path: Path) -> None:
    registry.add("three", upload(save_adapter(tmp_path / "three", 3, rank=3)))
    with pytest.raises(error):
        registry.merged([(AdapterChoice(name), weight) for name, weight in parts], LINEAR)
    assert registry.open_leases() == 0
    assert not list((tmp_path / "home/staging").iterdir())


def test_damaged_files_are_made_again(registry: Registry) -> None:
    choice, _ = registry.merged(BOTH, LINEAR)
    assert choice.digest is not None
    (registry.folder(choice.digest) / "adapter_model.safetensors").write_bytes(b"")
    lease = registry.acquire([choice])
    with pytest.raises(AdapterBroken):
        registry.weights(choice.digest)
    lease.release()
    again, _ = registry.merged(BOTH, LINEAR)
    assert again == choice
    lease = registry.acquire([again])
    registry.weights(choice.digest)
    lease.release()


def test_the_least_recently_used_goes_first() -> None:
    freed: list[str] = []
    inventory = Inventory(frozenset(), freed.append)
    merges = Merges(inventory, limit=2)
    made: list[str] = []

    def find(key: str) -> str:
        @contextmanager
        def make() -> Iterator[str]:
            made.append(key)
            with inventory.admitting(f"digest {key}"):
                yield f"digest {key}"

        return merges.digest(key, make)

    find("a")
    find("b")
    find("a")
    lease = inventory.acquire([AdapterChoice(MERGED, digest=find("c"))])
    assert (made, freed) == (["a", "b", "c"], ["digest b"])
    with pytest.raises(UnknownAdapter):
        inventory.acquire([AdapterChoice(MERGED, digest="digest b")])
    find("d")
    find("e")
    assert freed == ["digest b", "digest a"], "what runs is kept"
    lease.release()
    assert freed == ["digest b", "digest a", "digest c"]
