"""The caches' memory, where no setting says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lorry.bootstrap import assemble
from lorry.cache_memory import (
    USUAL_HOST,
    USUAL_KV,
    for_adapters,
    for_host_cache,
    for_kv_cache,
)
from lorry.settings import Settings
from lorry_adapters.lora import control_groups
from support.container import write_groups

MIB = 1 << 20


@pytest.mark.parametrize("free", [0, 100 * MIB, 700 * MIB, 3 << 30, 100 << 30])
def test_a_quarter_of_the_memory_is_left_for_everything_else(free: int) -> None:
    settings = Settings()
    kv, host = for_kv_cache(settings, free), for_host_cache(settings, free)
    assert kv == min(USUAL_KV, free // 2)
    assert host == min(USUAL_HOST, free // 4)
    assert kv + host <= free * 3 // 4
    adapters = for_adapters(settings, free, kv)
    assert host <= adapters <= free // 2
    assert kv + adapters <= free * 3 // 4 or adapters == (free - kv) // 2


def test_a_setting_counts_whatever_is_free() -> None:
    settings = Settings(kv_cache_memory=64 * MIB, host_cache_memory=0)
    assert for_kv_cache(settings, 0) == 64 * MIB
    assert for_host_cache(settings, 100 << 30) == 0
    assert for_adapters(Settings(adapter_memory=5), 100 << 30, 0) == 5
    # A host cache that was asked for is not cut by what nobody asked for.
    assert for_adapters(Settings(host_cache_memory=1 << 30), MIB, 0) >= 1 << 30


def test_a_server_in_a_small_container_has_smaller_caches(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    memory = {"memory.max": str(640 * MIB), "memory.current": str(636 * MIB)}
    write_groups(root, "0::/\n", memory)
    monkeypatch.setattr(control_groups, "ROOT", root)
    settings = Settings(model=str(tiny_model("llama")), home=tmp_path / "home", device="cpu")
    server = assemble(settings, lambda line: None, on_broken=lambda: None)
    try:
        about = server.base.about["memory"]
        assert isinstance(about, Mapping)
        # Beside its blocks it has a few numbers of its own.
        assert MIB < about["kv_cache"] < 2.1 * MIB
        assert about["host_cache_limit"] == MIB
        assert server.registry.host_cache_stats().capacity_bytes == MIB
        assert about["adapter_limit"] == server.base.adapter_needs.limit == MIB
    finally:
        server.close()
