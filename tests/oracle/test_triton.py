"""Whole models on Triton's kernels, decode steps recorded: against PEFT, and against themselves.

Where there is no GPU the kernels are interpreted, and a recorded step is the same step run
again over the same buffers. Float32, as in the other oracle tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")

from lorry.model import selfcheck
from support.executor_driver import Ask, ExecutorDriver, drawn, token_ids
from support.peft_oracle import Adapters, PeftOracle
from support.prompts import random_prompt
from support.triton_driver import TritonDriver

TOLERANCE = 1e-4

FAMILIES = ["llama", "gemma2"]
"""Grouped queries; a window and a soft cap. GPT-2 has transposed linears besides."""


@pytest.fixture(scope="module")
def drivers(tiny_model: Callable[[str], Path]) -> Iterator[Callable[[str], TritonDriver]]:
    made: dict[str, TritonDriver] = {}

    def of(family: str) -> TritonDriver:
        if family not in made:
            made[family] = TritonDriver(tiny_model(family))
        made[family].forget_slots()
        return made[family]

    yield of
    for driver in made.values():
        driver.close()


def mixed(family: str, adapter: Callable[..., Path]) -> list[Ask]:
    a, b = adapter(family, "plain", seed=1), adapter(family, "rank_pattern", seed=2)
    selections: list[Adapters] = [[], [(a, 1.0)], [(b, 0.5)], [(a, 1.0), (b, -0.5)], [(a, 2.0)]]
    return [Ask(chosen, random_prompt(6 + row, row)) for row, chosen in enumerate(selections)]


@pytest.mark.parametrize(("family", "chunk"), [("llama", 4), ("gemma2", 5), ("gpt2", 5)])
def test_prompts_in_chunks_against_peft(
    family: str,
    chunk: int,
    drivers: Callable[[str], TritonDriver],
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
) -> None:
    oracle, asks = PeftOracle(tiny_model(family)), mixed(family, peft_adapter)
    for ask, mine in zip(asks, drivers(family).score(asks, chunk=chunk), strict=True):
        theirs = oracle.prompt_logprobs(ask.adapters, ask.token_ids)
        assert mine == pytest.approx(theirs, abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_gives_the_tokens_of_the_other_kernels(
    family: str,
    drivers: Callable[[str], TritonDriver],
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
) -> None:
    driver, asks = drivers(family), mixed(family, peft_adapter)
    before = driver.record.repeated
    mine = driver.greedy(asks, 4)
    assert driver.record.repeated == before + 3, "every step but the prompts' was a recorded one"
    theirs = ExecutorDriver(tiny_model(family)).greedy(asks, 4)
    for ours, other in zip(mine, theirs, strict=True):
        assert token_ids(ours) == token_ids(other)
        for token, wanted in zip(drawn(ours), drawn(other), strict=True):
            assert token.logprob == pytest.approx(wanted.logprob, abs=TOLERANCE)


def test_recorded_steps_give_the_bits_of_direct_ones(
    tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    """Batches that need no rows to fill them up: what the base's own products are rounded to
    may depend on how many rows there are."""
    asks = mixed("llama", peft_adapter)
    recorded, direct = TritonDriver(tiny_model("llama")), TritonDriver(tiny_model("llama"))

    def fail(run: object) -> object:
        raise RuntimeError("not recorded")

    direct.record.recorded = 0
    direct.record._record = fail  # type: ignore[assignment]
    for chosen in (asks[2:4], asks[1:2]):
        assert recorded.greedy(chosen, 3) == direct.greedy(chosen, 3)
    assert recorded.executor.paths.kernels == "triton" and recorded.record.repeated == 4
    assert direct.executor.paths.kernels == "triton, not recorded" and direct.record.repeated == 0


def test_a_rows_numbers_do_not_depend_on_its_neighbours(
    drivers: Callable[[str], TritonDriver], peft_adapter: Callable[..., Path]
) -> None:
    driver, asks = drivers("llama"), mixed("llama", peft_adapter)[1:4]
    together = [token_ids(row) for row in driver.greedy(asks, 3)]
    for ask, expected in zip(asks, together, strict=True):
        (alone,) = driver.greedy([ask], 3)
        assert token_ids(alone) == expected


def test_adapters_of_other_ranks_in_a_recorded_steps_slots(
    tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    """A recording reads slots, ranks and scales anew: what was there when it was made is gone."""
    driver, plain = TritonDriver(tiny_model("llama")), ExecutorDriver(tiny_model("llama"))
    variants = ["plain", "rank_one", "mlp_only", "large"]
    chance, prompt = random.Random(3), random_prompt(6, 4)
    for variant in variants:
        ask = Ask([(peft_adapter("llama", variant, seed=5), chance.choice([1.0, 0.3]))], prompt)
        for one in (driver, plain):
            one.forget_slots()
        assert token_ids(driver.greedy([ask], 3)[0]) == token_ids(plain.greedy([ask], 3)[0])
    # One shape; once for the first adapter's modules, which were all.
    assert driver.record.recorded == 1
    assert driver.record.repeated == 2 * len(variants)


def test_a_module_that_gets_slots_later_is_recorded_anew(
    tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    driver, plain = TritonDriver(tiny_model("llama")), ExecutorDriver(tiny_model("llama"))
    prompt = random_prompt(6, 5)
    for variant in ("attention_only", "mlp_only", "attention_only"):
        ask = Ask([(peft_adapter("llama", variant, seed=6), 1.0)], prompt)
        assert token_ids(driver.greedy([ask], 3)[0]) == token_ids(plain.greedy([ask], 3)[0])
    assert driver.record.recorded == 2


def test_the_self_check_finds_nothing(drivers: Callable[[str], TritonDriver]) -> None:
    driver = drivers("llama")
    assert selfcheck.problem(driver.executor, driver.loaded, []) is None
