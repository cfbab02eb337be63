"""Adapters come and go in the compiled step's slots: what lay there before leaves no trace."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from support.compiled import CompiledDriver
from support.executor_driver import NUM_SLOTS, Ask, ExecutorDriver

Adapter = Callable[..., Path]
PROMPT = list(range(5, 30))


@pytest.fixture
def driver(
    built: ctypes.CDLL, tiny_model: Callable[[str], Path], request: pytest.FixtureRequest
) -> CompiledDriver:
    made = CompiledDriver(tiny_model("llama"), built)
    request.addfinalizer(made.close)
    return made


def score(driver: ExecutorDriver, *adapters: Path, scale: float = 1.0) -> list[float]:
    return driver.score([Ask(tuple((path, scale) for path in adapters), PROMPT)])[0]


@pytest.fixture
def fresh(built: ctypes.CDLL, tiny_model: Callable[[str], Path]) -> Callable[..., list[float]]:
    """What a runner says that has never held another adapter."""

    def scored(*adapters: Path) -> list[float]:
        made = CompiledDriver(tiny_model("llama"), built)
        try:
            return score(made, *adapters)
        finally:
            made.close()

    return scored


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("large", "rank_one"),  # a smaller rank
        ("rank_one", "large"),
        ("plain", "one_module"),  # modules that the second has not
        ("head", "attention_only"),
        ("attention_only", "head"),  # a module that no adapter has had before
        ("layers_to_transform", "mlp_only"),
    ],
)
def test_a_slot_is_taken_over_whole(
    first: str,
    second: str,
    driver: CompiledDriver,
    fresh: Callable[..., list[float]],
    peft_adapter: Adapter,
) -> None:
    before, after = (peft_adapter("llama", v, seed=i) for i, v in enumerate((first, second)))
    driver.place(1, before)
    assert score(driver, before) == fresh(before)
    driver.place(1, after)
    assert score(driver, after) == fresh(after) != score(driver)
    driver.place(1, before)
    assert score(driver, before) == fresh(before)


def test_the_last_slot_is_a_slot(
    driver: CompiledDriver, fresh: Callable[..., list[float]], peft_adapter: Adapter
) -> None:
    adapter = peft_adapter("llama", "large")
    driver.place(NUM_SLOTS, adapter)
    assert score(driver, adapter) == fresh(adapter)


def test_placing_one_adapter_leaves_the_others_alone(
    driver: CompiledDriver, peft_adapter: Adapter
) -> None:
    kept, first, second = (
        peft_adapter("llama", v, seed=i) for i, v in enumerate(("plain", "large", "small"))
    )
    driver.place(3, kept)
    expected, base = score(driver, kept), score(driver)
    for slot, adapter in ((2, first), (4, second), (2, second), (4, first)):
        driver.place(slot, adapter)
        assert score(driver, kept) == expected
        assert score(driver) == base


def test_slots_cost_nothing_before_the_first_adapter(
    driver: CompiledDriver, peft_adapter: Adapter
) -> None:
    assert driver.executor.paths.slot_bytes == 0
    driver.place(1, peft_adapter("llama", "one_module"))
    one = driver.executor.paths.slot_bytes
    driver.place(2, peft_adapter("llama", "attention_only"))
    assert 0 < one < driver.executor.paths.slot_bytes


# ---- eight bits


def scaled(source: Path, folder: Path, a: float, b: float, alpha: float) -> Path:
    """The same adapter, A, B and alpha multiplied."""
    folder.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        tensors[name] = tensor * (a if "lora_A" in name else b)
    save_file(tensors, folder / "adapter_model.safetensors")
    config: dict[str, Any] = json.loads((source / "adapter_config.json").read_text())
    config["lora_alpha"] *= alpha
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("a", "b", "alpha"),
    [
        (2.0**-40, 2.0**40, 1),  # neither fits in 16 bits
        (2.0**60, 2.0**-60, 1),
        (2.0**20, 2.0**20, 2**-40),
        (2.0**-10, 2.0**-5, 2**15),
    ],
)
def test_only_the_product_of_a_and_b_counts(
    a: float, b: float, alpha: float, driver: CompiledDriver, peft_adapter: Adapter, tmp_path: Path
) -> None:
    plain = peft_adapter("llama", "plain")
    other = scaled(plain, tmp_path / "other", a, b, alpha)
    # Powers of two: what is rounded, and so every bit, stays the same.
    assert score(driver, other) == score(driver, plain)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 0.0), (1e-42, 1.0), (1e-30, 1e-30)])
def test_an_adapter_of_next_to_nothing_is_the_base(
    a: float, b: float, driver: CompiledDriver, peft_adapter: Adapter, tmp_path: Path
) -> None:
    other = scaled(peft_adapter("llama", "plain"), tmp_path / "other", a, b, 1)
    assert score(driver, other) == score(driver)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_an_adapter_that_overflows_spoils_its_own_rows_only(
    driver: CompiledDriver, peft_adapter: Adapter, tmp_path: Path
) -> None:
    good = peft_adapter("llama", "plain")
    bad = scaled(good, tmp_path / "bad", 1e30, 1e30, 1)
    asks = [Ask(((path, 1.0),), PROMPT) for path in (good, bad, good, bad)] + [Ask((), PROMPT)]
    alone = {path: score(driver, path) for path in (good,)}
    answers = driver.score(asks)
    assert answers[0] == answers[2] == alone[good]
    assert answers[4] == score(driver)
    # Not a number, and so seen and refused by the engine, rather than an answer from nothing.
    assert not any(math.isfinite(p) for p in (*answers[1], *answers[3]))
    # Its keys and values stay in the cache until somebody else's are written over them.
    assert driver.score(asks[:1] + asks[4:]) == [answers[0], answers[4]]
