"""The base is loaded once and never changed: its digest before and after a hard life."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.live import serve
from lorry.model.memory import digest_of_base
from lorry.settings import Settings
from support.executor_driver import NUM_SLOTS, Ask, ExecutorDriver
from support.patience import client
from support.peft_adapters import pack
from support.prompts import random_prompt
from support.server import body

VARIANTS = ["plain", "large", "one_module", "head", "rslora", "mlp_only", "small", "all_linear"]
ROUNDS = 1000


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_thousand_places_in_the_runner(
    quantization: str, tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    driver = ExecutorDriver(tiny_model("llama"), quantization=quantization)
    before = digest_of_base(driver.loaded.model)
    random_ = random.Random(0)
    folders = [peft_adapter("llama", variant, seed=5) for variant in VARIANTS]
    ids = random_prompt(6, 0)
    alone = driver.score([Ask([], ids)])
    for turn in range(ROUNDS):
        driver.place(random_.randint(1, NUM_SLOTS), random_.choice(folders))
        if turn % 10 == 0:
            chosen = random_.sample(driver.placed, min(2, len(driver.placed)))
            driver.greedy([Ask([(f, random_.uniform(-2, 2)) for f in chosen], ids)], 2)
    assert digest_of_base(driver.loaded.model) == before
    assert driver.score([Ask([], ids)]) == alone


def test_a_thousand_uploads_requests_and_deletions(
    tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Through the whole server, on the base as it is by default on a CPU."""
    settings = Settings(
        model=str(tiny_model("llama")),
        home=tmp_path / "home",
        device="cpu",
        quantize="int8",
        kv_cache_memory=1 << 20,
        samples=False,
        max_loras=3,
        max_cpu_loras=4,
    )
    archives = [
        pack(peft_adapter("llama", variant, seed=5), tmp_path / f"{variant}.zip").read_bytes()
        for variant in VARIANTS
    ]
    with serve(settings) as live:
        before = digest_of_base(live.server.core.loaded.model)
        assert any("codes" in name or "SCB" in name or "scales" in name for name in before)
        alone = {"cache_prompt": False}
        answer = live.generate("Ahoy there", parameters=alone)

        def lives(worker: int) -> None:
            with client(live.url) as http:
                for turn in range(ROUNDS // 4):
                    name = f"w{worker}-{turn}"
                    archive = archives[(worker * 2 + turn % 2) % len(archives)]
                    files = {"file": archive}
                    http.post("/adapters", data={"name": name}, files=files).raise_for_status()
                    asked = body("Ahoy", {"name": name, "scale": 1 + turn % 3}, 1)
                    http.post("/generate", json=asked).raise_for_status()
                    http.delete(f"/adapters/{name}").raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lives, range(4)))
        assert live.metric("lorry_adapter_loads_total") >= ROUNDS / 2
        assert live.generate("Ahoy there", parameters=alone) == answer
        assert digest_of_base(live.server.core.loaded.model) == before
