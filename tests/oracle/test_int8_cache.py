"""A KV cache in bytes (`--kv-cache-dtype int8`): near PEFT within what bytes cost, and the same
in any company.

Tiny random models have keys and values without outliers, and heads of 16 numbers. What bytes cost
on the default base is `test_quality.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorry.model.compiled import library, recipe
from lorry.model.kv_cache import spread
from support.company import check_company
from support.compiled import require_compiled_step
from support.executor_driver import Ask, ExecutorDriver
from support.peft_kinds import KINDS
from support.peft_made import make
from support.peft_oracle import PeftOracle
from support.prompts import random_prompt

CASES = [
    *((family, "int8") for family in ("llama", "qwen2", "gemma2", "gemma3", "gpt2")),
    ("llama", "nf4"),
]
"""With windows and caps among them."""

WORST, MEAN = 1.5, 0.17
"""Of log-probabilities, which are 10 on average here: seen 1.2 and 0.135, and 0.08 on average where
activations have 14 bits. Keys and values in bytes
alone, on PyTorch's operations, move them by 0.03 on average, and queries and weights in bytes by as
much again. `tests/unit/model/compiled/test_attention_in_bytes.py` has the formulas, exactly."""

Driver = Callable[..., ExecutorDriver]


@pytest.fixture(scope="module")
def driver_of(tiny_model: Callable[[str], Path]) -> Iterator[Driver]:
    require_compiled_step()
    made: list[ExecutorDriver] = []

    def driver(family: str, quantization: str = "int8", **options: object) -> ExecutorDriver:
        folder = tiny_model(family)
        options = {"kv_cache": "int8", **options}
        made.append(
            ExecutorDriver(folder, quantization=quantization, kernels="compiled", **options)  # type: ignore[arg-type]
        )
        return made[-1]

    yield driver
    for one in made:
        one.close()


@pytest.fixture
def asks_of(peft_adapter: Callable[..., Path]) -> Callable[[str], list[Ask]]:
    def asks(family: str) -> list[Ask]:
        a, b = (peft_adapter(family, name, seed=1) for name in ("plain", "rank_pattern"))
        chosen = [[], [(a, 1.0)], [(b, 0.5)], [(a, 1.0), (b, 1.0)]]
        return [Ask(one, random_prompt(60 + 30 * row, row)) for row, one in enumerate(chosen)]

    return asks


def distances(mine: list[list[float]], theirs: list[list[float]]) -> tuple[float, float]:
    """The largest, and the mean."""
    wrong = [
        abs(x - y) for a, b in zip(mine, theirs, strict=True) for x, y in zip(a, b, strict=True)
    ]
    return max(wrong), fmean(wrong)


@pytest.mark.parametrize(("family", "quantization"), CASES)
def test_near_peft(
    family: str,
    quantization: str,
    tiny_model: Callable[[str], Path],
    driver_of: Driver,
    asks_of: Callable[[str], list[Ask]],
) -> None:
    asks = asks_of(family)
    oracle = PeftOracle(tiny_model(family), quantization)
    oracle.multiply_exactly()
    theirs = [oracle.prompt_logprobs(*ask.both) for ask in asks]
    worst, mean = distances(driver_of(family, quantization).score(asks, chunk=33), theirs)
    assert worst < WORST and mean < MEAN


@pytest.mark.parametrize("instructions", recipe.INSTRUCTIONS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_row_does_not_know_its_neighbours(
    family: str,
    instructions: str,
    monkeypatch: pytest.MonkeyPatch,
    driver_of: Driver,
    asks_of: Callable[[str], list[Ask]],
) -> None:
    if instructions not in library.instructions():
        pytest.skip(f"this processor has no {instructions}")
    monkeypatch.setattr(library, "instructions", lambda: (instructions,))
    check_company(driver_of(family, threads=2), asks_of(family), 24)


def test_rows_beside_the_compiled_step_share_the_cache(
    tiny_model: Callable[[str], Path],
    driver_of: Driver,
    asks_of: Callable[[str], list[Ask]],
    tmp_path: Path,
) -> None:
    """Packed, and with a prefix of keys and values: they read and write bytes, too."""
    folder = tiny_model("llama")
    base = AutoModelForCausalLM.from_pretrained(folder)
    kinds = ("ln_tuning", "prefix tuning", "prompt tuning")
    made = [make(KINDS[kind], "llama", base, tmp_path / str(i)) for i, kind in enumerate(kinds)]
    asks = [
        Ask([(one.folder, 1.0)], random_prompt(40 + 9 * row, row)) for row, one in enumerate(made)
    ]
    asks += asks_of("llama")
    answers = [driver_of("llama", kv_cache=kind).score(asks, chunk=17) for kind in ("int8", "auto")]
    worst, mean = distances(*answers)
    assert 1e-4 < worst < WORST and mean < MEAN


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_check_at_the_start_lets_it_serve(family: str, driver_of: Driver) -> None:
    assert driver_of(family, is_checked=True).executor.paths.kernels == "compiled"


def test_the_step_writes_what_the_cache_says(driver_of: Driver) -> None:
    """Keys and values of the first layer are the same, whatever the cache holds of them."""
    asks = [Ask([], random_prompt(70, 3))]
    kept = []
    for kv_cache in ("int8", "auto"):
        driver = driver_of("llama", kv_cache=kv_cache)
        driver.score(asks, chunk=20)
        cache = driver.executor.paths.cache
        every = torch.arange(cache.num_blocks * cache.block_size)
        kv = cache.layers[0]
        kept.append([cells.read(every, torch.float32) for cells in (kv.keys, kv.values)])
    for rounded_NHD, halves_NHD in zip(*kept, strict=True):
        assert halves_NHD.any()
        step_NH1 = spread(halves_NHD).abs().amax(-1, keepdim=True) / 127
        # The other one is rounded, too.
        assert (spread(rounded_NHD - halves_NHD).abs() <= 0.57 * step_NH1).all()
        assert not rounded_NHD[~halves_NHD.any(-1)].any()
