"""The memory of a container, by the kernel's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest

from lorry_adapters.lora import control_groups, memory_limit
from support.container import write_groups

MIB = 1 << 20
V2 = "0::{path}\n"
V1 = "9:name=systemd:/\n4:cpu,memory:{path}\n0::/\n"
Write = Callable[[str, Mapping[str, str]], None]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    return partial(write_groups, tmp_path)


def test_without_groups_it_is_the_machine_s(system: Write) -> None:
    assert memory_limit.total() == psutil.virtual_memory().total
    assert 0 < memory_limit.free() <= memory_limit.total()


@pytest.mark.parametrize("limit", ["max", str(1 << 60), "9223372036854771712", "what"])
def test_a_limit_that_limits_nothing(limit: str, system: Write) -> None:
    system(V2.format(path="/"), {"memory.max": limit, "memory.current": "0"})
    assert memory_limit.total() == psutil.virtual_memory().total
    system(
        V1.format(path="/"),
        {"memory/memory.limit_in_bytes": limit, "memory/memory.usage_in_bytes": "0"},
    )
    assert memory_limit.total() == psutil.virtual_memory().total


@pytest.mark.parametrize("path", ["/", "/docker/abc", "/../other"])
def test_version_2(path: str, system: Write) -> None:
    stat = f"anon 7\nfile 900\ninactive_file {5 * MIB}\nactive_file {3 * MIB}"
    system(
        V2.format(path=path),
        {
            "memory.max": str(100 * MIB),
            "memory.current": str(30 * MIB),
            "memory.stat": stat,
        },
    )
    assert memory_limit.total() == 100 * MIB
    assert memory_limit.free() == (100 - 30 + 5 + 3) * MIB


def test_the_narrowest_group_around_it_counts(system: Write) -> None:
    system(
        V2.format(path="/a/b"),
        {
            "a/b/memory.max": str(80 * MIB),
            "a/b/memory.current": str(10 * MIB),
            "a/memory.max": str(90 * MIB),
            "a/memory.current": str(60 * MIB),
            "memory.max": "max",
        },
    )
    assert memory_limit.total() == 80 * MIB
    assert memory_limit.free() == 30 * MIB


@pytest.mark.parametrize("folder", ["memory", "memory/docker/abc"])
def test_version_1(folder: str, system: Write) -> None:
    system(
        V1.format(path="/docker/abc"),
        {
            f"{folder}/memory.limit_in_bytes": str(64 * MIB),
            f"{folder}/memory.usage_in_bytes": str(70 * MIB),
            f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {16 * MIB}",
        },
    )
    assert memory_limit.total() == 64 * MIB
    assert memory_limit.free() == 10 * MIB


def test_more_than_the_limit_is_used(system: Write) -> None:
    system(V2.format(path="/"), {"memory.max": "100", "memory.current": "200"})
    assert memory_limit.free() == 0
