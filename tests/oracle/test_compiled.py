"""The compiled step against PEFT over the same int8 and nf4 weights, and against itself.

`tests/oracle/test_quantized.py` says where its tolerances come from: 14 bits of an
activation on our side, exact products on theirs. So it is with `CODES`, int8 with activations as
heads read them. In int8 and nf4 as they are served both sides round activations alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from lorry.model.compiled import library, recipe
from lorry.model.memory import digest_of_base
from support.company import check_company
from support.compiled import in_codes, require_compiled_step
from support.described_families import COMPILED
from support.executor_driver import NUM_SLOTS, Ask, ExecutorDriver, drawn, load_tiny, token_ids
from support.peft_adapters import VARIANTS
from support.peft_oracle import Adapters, PeftOracle
from support.prompts import random_prompt
from support.rounded import rounded

Exact = Callable[..., list[list[float]]]

FAMILIES = COMPILED
CASES = [
    *((family, "int8") for family in FAMILIES),
    *((family, "nf4") for family in ("llama", "qwen2", "phi3", "gemma3", "gpt2")),
]
CODES = "codes"
EXACT = [*CASES, *((family, CODES) for family in FAMILIES)]
WORST, MEAN = 0.03, 0.006
LOUD = {"llama_tied": 2, "granite_odd": 3, "nemotron": 4}
"""How many times as far two right answers are apart. Tied, the logits are louder, and a square
doubles an error: PyTorch's int8 path, too, is 1.7 and 2.7 times as far from exact products as on
Llama."""

FLIPPED = 20
"""The same where activations have 8 bits: both sides round alike, but the half-precision
cache moves some numbers to the next code. 15 times seen."""


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    require_compiled_step()


@pytest.fixture(params=recipe.INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A processor with one has the lesser ones, too: each is tried where it can be."""
    if request.param not in library.instructions():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(library, "instructions", lambda: (request.param,))
    try:
        library.find()
    except library.Missing as missing:
        pytest.skip(f"the compiled step is not built for {request.param}: {missing}")
    return str(request.param)


@contextmanager
def compiled(
    folder: Path, threads: int = 1, quantization: str = "int8", is_checked: bool = False
) -> Iterator[ExecutorDriver]:
    with in_codes() if quantization == CODES else nullcontext():
        driver = ExecutorDriver(
            folder,
            quantization="int8" if quantization == CODES else quantization,
            kernels="compiled",
            threads=threads,
            is_checked=is_checked,
        )
    yield driver
    driver.close()


def check(
    mine: list[list[float]],
    theirs: list[list[float]],
    family: str = "",
    quantization: str = "int8",
) -> None:
    times = LOUD[family] if family in LOUD else 1  # noqa: SIM401, a limit in `get` reads as a timeout
    times *= 1 if quantization == CODES else FLIPPED
    for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        wrong = [abs(x - y) for x, y in zip(a, b, strict=True)]
        assert max(wrong) < times * WORST, f"row {index}"
        assert fmean(wrong) < times * MEAN, f"row {index}"


def mixed(adapter: Callable[..., Path]) -> list[Ask]:
    a, b = adapter("plain", seed=1), adapter("rank_pattern", seed=2)
    chosen: list[Adapters] = [[], [(a, 1.0)], [(b, 1.0)], [(a, 0.5)], [(a, 1.0), (b, 1.0)]]
    return [Ask(one, random_prompt(17 + 3 * row, row)) for row, one in enumerate(chosen)]


@pytest.fixture
def adapter_of(peft_adapter: Callable[..., Path]) -> Callable[[str], Callable[..., Path]]:
    return lambda family: lambda *a, **k: peft_adapter(family, *a, **k)


@pytest.fixture
def exact(tiny_model: Callable[[str], Path], tmp_path: Path) -> Exact:
    """What PEFT says of exact products, with adapters that are rounded as the compiled step
    holds them: these adapters are as loud as the base, and their rounding would hide what
    else is wrong. What it costs is `test_rounded_adapters_are_near_the_exact_ones`'s."""
    done: dict[Path, Path] = {}

    def scored(family: str, asks: list[Ask], quantization: str = "int8") -> list[list[float]]:
        base = tiny_model(family)
        for folder in {folder for ask in asks for folder, _ in ask.adapters} - done.keys():
            target = tmp_path / f"{family}-{folder.name}"
            done[folder] = rounded(folder, target, load_tiny(base).layout)
        return unrounded(
            base,
            [Ask([(done[folder], s) for folder, s in ask.adapters], ask.token_ids) for ask in asks],
            quantization,
        )

    return scored


def unrounded(base: Path, asks: list[Ask], quantization: str = CODES) -> list[list[float]]:
    oracle = PeftOracle(base, "int8" if quantization == CODES else quantization)
    if quantization == "int8":
        oracle.multiply_as_compiled()
    else:
        oracle.multiply_exactly()
    return [oracle.prompt_logprobs(*ask.both) for ask in asks]


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("family", "quantization"), EXACT)
def test_mixed_batch(
    family: str,
    quantization: str,
    threads: int,
    tiny_model: Callable[[str], Path],
    adapter_of: Callable,
    exact: Exact,
) -> None:
    asks = mixed(adapter_of(family))
    theirs = exact(family, asks, quantization)
    with compiled(tiny_model(family), threads, quantization) as driver:
        for chunk in (None, 1, 5, 16):
            check(driver.score(asks, chunk=chunk), theirs, family, quantization)


@pytest.mark.parametrize(("family", "quantization"), EXACT)
def test_every_variant(
    family: str,
    quantization: str,
    tiny_model: Callable[[str], Path],
    adapter_of: Callable,
    exact: Exact,
) -> None:
    """Alone, in one batch with the others, at scales of their own, and several summed."""
    folders = [adapter_of(family)(variant) for variant in VARIANTS]
    asks = [Ask([(folder, 1.0)], random_prompt(20, 1)) for folder in folders]
    theirs = exact(family, asks, quantization)
    with compiled(tiny_model(family), quantization=quantization) as driver:
        for start in range(0, len(folders), NUM_SLOTS):
            part = slice(start, start + NUM_SLOTS)
            driver.forget_slots()
            alone = [driver.score([ask])[0] for ask in asks[part]]
            check(alone, theirs[part], family, quantization)
            assert driver.score(asks[part]) == alone
        driver.forget_slots()
        held = folders[:NUM_SLOTS]
        sums = [Ask([(held[i], -0.5), (held[i + 1], 0.75)], random_prompt(12, i)) for i in range(7)]
        sums.append(Ask([(folder, 0.3) for folder in held], random_prompt(12, 60)))
        sums.append(Ask([(held[0], 2.0)], random_prompt(12, 61)))
        theirs = exact(family, sums, quantization)
        check(driver.score(sums, chunk=8), theirs, family, quantization)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("family", "quantization"), CASES)
def test_a_row_does_not_know_its_neighbours(
    family: str,
    quantization: str,
    threads: int,
    tiny_model: Callable[[str], Path],
    adapter_of: Callable,
) -> None:
    asks = mixed(adapter_of(family))
    with compiled(tiny_model(family), threads, quantization) as driver:
        check_company(driver, asks, 24)


@pytest.mark.parametrize("kernels", ["compiled", "torch"])
def test_a_sum_does_not_know_its_slots(
    kernels: str, tiny_model: Callable[[str], Path], adapter_of: Callable
) -> None:
    """Where adapters lie depends on who came before: no bit of an answer may."""
    held = [adapter_of("llama")(variant) for variant in ("plain", "large", "rslora", "head")]
    asks = [Ask([(folder, 0.5) for folder in held], random_prompt(30, 1)), *mixed_sums(held)]
    driver = ExecutorDriver(tiny_model("llama"), quantization="int8", kernels=kernels)
    answers = []
    for order in (held, held[::-1], held[2:] + held[:2]):
        driver.forget_slots()
        for slot, folder in enumerate(order, start=1):
            driver.place(slot, folder)
        answers.append([driver.score([ask])[0] for ask in asks])
    driver.close()
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_adapters_are_near_the_exact_ones(
    family: str, tiny_model: Callable[[str], Path], peft_adapter: Callable[..., Path]
) -> None:
    """Against PEFT with the files' own numbers: a delta is off by 0.5 to 1 % of itself
    (`tests/unit/model/compiled/test_adapter.py`), and so is what it does to an answer."""
    asks = mixed(partial(peft_adapter, family))[1:]
    with compiled(tiny_model(family), quantization=CODES) as driver:
        mine = driver.score(asks)
    theirs = unrounded(tiny_model(family), asks)
    base = unrounded(tiny_model(family), [Ask([], ask.token_ids) for ask in asks])
    assert distance(mine, theirs) < 0.03 * distance(base, theirs)


def distance(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Mean, of log-probabilities."""
    pairs = [pair for both in zip(ours, theirs, strict=True) for pair in zip(*both, strict=True)]
    return fmean(abs(a - b) for a, b in pairs)


def mixed_sums(held: list[Path]) -> list[Ask]:
    return [Ask([(a, 1.0), (b, -0.7)], random_prompt(15, 2)) for a, b in pairwise(held)]


@pytest.mark.parametrize(("family", "quantization"), CASES)
def test_decode_is_prefill(
    family: str, quantization: str, tiny_model: Callable[[str], Path], adapter_of: Callable
) -> None:
    with compiled(tiny_model(family), quantization=quantization) as driver:
        check_decode(driver, mixed(adapter_of(family)))


def check_decode(driver: ExecutorDriver, asks: list[Ask]) -> None:
    """A token's logprob when it is drawn is the one it has as part of a prompt."""
    for ask, results in zip(asks, driver.greedy(asks, 12, chunk=7), strict=True):
        ids = [*ask.token_ids, *token_ids(results)]
        again = driver.score([Ask(ask.adapters, ids)])[0][len(ask.token_ids) - 1 :]
        for token, logprob in zip(drawn(results), again, strict=True):
            assert abs(token.logprob - logprob) < WORST


def test_scale_zero_is_the_base_exactly(
    tiny_model: Callable[[str], Path], adapter_of: Callable
) -> None:
    folder, ids = adapter_of("llama")("all_linear"), random_prompt(20, 1)
    with compiled(tiny_model("llama")) as driver:
        base = driver.score([Ask([], ids)])
        driver.slot_of(folder)
        assert driver.score([Ask([], ids)]) == base
        assert driver.score([Ask([(folder, 0.0)], ids)]) == base


def test_a_slot_forgets_what_it_held(
    tiny_model: Callable[[str], Path], adapter_of: Callable, exact: Exact
) -> None:
    """A small adapter in the slot of a large one with more targets, and back; the base's
    bytes stay as they were."""
    with compiled(tiny_model("llama")) as driver:
        before = digest_of_base(driver.loaded.model)
        for variant in ("large", "one_module", "all_linear", "rank_one", "head", "small", "regex"):
            folder = adapter_of("llama")(variant, seed=3)
            driver.place(1, folder)
            asks = [Ask([(folder, 1.0)], random_prompt(15, 4)), Ask([], random_prompt(15, 4))]
            check(driver.score(asks), exact("llama", asks))
        assert digest_of_base(driver.loaded.model) == before
