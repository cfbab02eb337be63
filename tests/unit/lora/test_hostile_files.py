"""Configs and headers that are to keep a server busy, or fill its memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.weights import CONFIG_FILE, WEIGHTS_FILE, inspect
from support.adapter_files import layout, save_adapter
from support.hostile_files import hostile_configs, hostile_headers

GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
CONFIGS = hostile_configs(GOOD)
HEADERS = hostile_headers()


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        inspect(folder, layout(), 64)
    assert len(caught.value.problems) <= 51
    return "; ".join(caught.value.problems)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name: str, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", 1)
    content, says = CONFIGS[name]
    (folder / CONFIG_FILE).write_bytes(content)
    said = refusal(folder)
    assert says in said.lower() and said.isascii() and len(said) < 10_000


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    """What is refused for its size is refused before anything is made of it."""
    folder = save_adapter(tmp_path / "adapter", 1)
    make, says = HEADERS[name]
    (folder / WEIGHTS_FILE).write_bytes(make())
    traced = "100,000" not in name  # what is read takes its time, and its room
    if traced:
        tracemalloc.start()
    try:
        said = refusal(folder)
        _, peak = tracemalloc.get_traced_memory()  # 0 where nothing is traced
    finally:
        tracemalloc.stop()
    assert says in said.lower() and said.isascii() and len(said) < 20_000
    assert peak < 100 << 20
