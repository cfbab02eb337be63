"""The number of threads that compute, by what this process may use of the system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lorry.model import threads
from lorry.model.threads import Cores, threads_of, usable_cores, use_threads
from lorry_adapters.lora import control_groups
from support.container import write_groups


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    return tmp_path


V1 = "5:memory:/\n4:cpuset:/\n3:cpu,cpuacct:/docker/abc\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {}, None),
        # A service's own group, in another with less.
        (
            "0::/a/b\n",
            {
                "a/b/cpu.max": "800000 100000",
                "a/cpu.max": "350000 100000",
            },
            3.5,
        ),
        # The host's path, and one from outside, which a container does not see.
        ("0::/docker/abc\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/../other\n", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/a\n", {"unified/a/cpu.max": "300000 100000"}, 3.0),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            V1,
            {
                "cpu/cpu.cfs_quota_us": "600000",
                "cpu/cpu.cfs_period_us": "200000",
            },
            3.0,
        ),
        (
            V1,
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ("nonsense\n0::\n", {"cpu.max": "many 100000"}, None),
        ("0::/\n", {"cpu.max": "200000 0"}, None),
    ],
)
def test_a_quota_is_found(
    groups: str, files: dict[str, str], quota: float | None, root: Path
) -> None:
    write_groups(root, groups, files)
    assert usable_cores() == Cores(64, quota)


def test_a_system_without_control_groups_has_no_quota() -> None:
    assert usable_cores() == Cores(64, None)


@pytest.mark.parametrize(
    ("asked", "counted", "cores", "expected"),
    [
        (0, 64, Cores(64, 2.0), 2),
        (0, 64, Cores(64, 2.9), 2),
        (0, 64, Cores(64, 0.5), 1),
        (0, 64, Cores(4, None), 4),
        (0, 64, Cores(4, 8.0), 4),
        (0, 32, Cores(64, None), 32),
        (0, 1, Cores(64, 2.0), 1),
        (7, 64, Cores(64, 2.0), 7),
    ],
)
def test_torchs_count_is_bounded_by_the_cores_and_what_was_asked_for_is_not(
    asked: int, counted: int, cores: Cores, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: counted)
    assert threads_of(asked, cores) == expected
    assert threads.described(asked, cores).startswith(f"{expected} compute")


@pytest.mark.parametrize(("asked", "warned"), [(0, False), (2, False), (3, True)])
def test_torch_takes_them_and_too_many_are_spoken_of(
    asked: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: Cores(64, 2.0))
    said: list[str] = []
    before = torch.get_num_threads()
    try:
        use_threads(asked, said.append)
        assert torch.get_num_threads() == (asked or before)
    finally:
        torch.set_num_threads(before)
    assert [line.startswith("--threads 3 is more than the 2 cores") for line in said] == (
        [True] if warned else []
    )
