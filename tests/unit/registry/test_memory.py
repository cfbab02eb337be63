"""Too little memory for an adapter: refused with numbers, nothing kept, and taken later."""

import resource
from pathlib import Path

import psutil
import pytest
import torch

from lorry_adapters.errors import OutOfMemory
from lorry_adapters.lora import control_groups, room
from lorry_adapters.registry import intake, weight_loader
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, upload
from support.container import write_groups
from support.registries import Files, Open, acquire, blobs

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 40000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
]


def test_it_is_told_from_the_header_before_anything_is_read(
    registry: Registry, home: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(room, "available", lambda: 100)
        patch.setattr(torch, "empty", lambda *args, **more: pytest.fail("a tensor was read"))
        # 2 x 6 + 6 x 2 and 2 x 10 + 6 x 2 numbers of four bytes.
        with pytest.raises(
            OutOfMemory, match=r"needs 224 bytes of memory, but the server has 100 left"
        ):
            registry.add("new", upload(files(1)))
    assert registry.records() == () and blobs(home) == set()
    assert list((home / "staging").iterdir()) == []
    registry.add("new", upload(files(1)))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_runs_out_in_the_middle(
    registry: Registry, home: Path, files: Files, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    for place in ("unpack", "inspect"):
        with monkeypatch.context() as patch:
            patch.setattr(intake, place, fail)
            with pytest.raises(OutOfMemory, match=r"needs .* memory, but the server has \d+ left"):
                if place == "unpack":
                    # It takes its bound by name.
                    patch.setattr(intake, place, lambda *args, **more: fail())
                registry.add("new", upload(files(1)))
    digest = registry.add("new", upload(files(1)))[0].current.digest
    lease = acquire(registry, "new")
    with monkeypatch.context() as patch:
        patch.setattr(weight_loader.spot_check, "check", fail)
        with pytest.raises(OutOfMemory):
            registry.weights(digest)
    # It was not the adapter's fault.
    assert registry.why_broken(digest) is None
    assert registry.weights(digest).digest == digest
    lease.release()
    assert list((home / "staging").iterdir()) == []


def test_the_allocators_own_number_is_told() -> None:
    with pytest.raises(OutOfMemory, match="x needs 40000000000 bytes"), room.named("x"):
        raise ERRORS[2]
    with pytest.raises(RuntimeError, match="other"), room.named("x"):
        raise RuntimeError("another kind of error, or other")


def test_a_start_that_has_no_memory_to_check_one_goes_on(
    registry: Registry, reopen: Open, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("new", upload(files(1)))
    other = layout()
    other = type(other)(
        **{**{name: getattr(other, name) for name in other.__slots__}, "architecture": "Other"}
    )
    with monkeypatch.context() as patch:
        patch.setattr(room, "available", lambda: 100)
        again = reopen(other)
    (record,) = again.records()
    assert "could not be checked" in str(again.why_broken(record.current.digest))


def test_what_is_left_is_the_least_of_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 0 < room.available() <= psutil.virtual_memory().total
    with monkeypatch.context() as patch:
        vms = psutil.Process().memory_info().vms
        patch.setattr(resource, "getrlimit", lambda kind: (vms + (100 << 20), -1))
        assert room.available() <= 110 << 20
    used = {"memory.current": "900000", "memory.stat": "anon 5\ninactive_file 300000"}
    write_groups(tmp_path, "0::/\n", {"memory.max": "1000000", **used})
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    assert room.available() == 400_000
    write_groups(tmp_path, "0::/\n", {"memory.max": "max", **used})
    assert room.available() > 1_000_000
