"""The base is loaded once and never changed: its digest before and after a hard life."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lorry.model.memory import digest_of_base
from support.runner_driver import NUM_SLOTS, Ask, RunnerDriver

VARIANTS = ["plain", "large", "one_module", "head", "rslora", "mlp_only", "small", "all_linear"]


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_thousand_loads_leave_the_base_as_it_was(
    quantization: str, tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    driver = RunnerDriver(tiny_model("llama"), quantization=quantization)
    before = digest_of_base(driver.loaded.model)
    random_ = random.Random(0)
    folders = [peft_adapter("llama", variant, seed=5) for variant in VARIANTS]
    ids = [random_.randrange(5, 384) for _ in range(6)]
    alone = driver.score([Ask([], ids)])
    for load in range(1000):
        driver.place(random_.randint(1, NUM_SLOTS), random_.choice(folders))
        if load % 10 == 0:
            held = list(driver._slots)
            chosen = random_.sample(held, min(2, len(held)))
            driver.greedy([Ask([(f, random_.uniform(-2, 2)) for f in chosen], ids)], 2)
    assert digest_of_base(driver.loaded.model) == before
    assert driver.score([Ask([], ids)]) == alone
