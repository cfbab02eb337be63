"""Mixtures of experts on the compiled step against PEFT over the same quantized weights, experts'
included, and against itself.

Where two experts' scores are almost equal, a rounding chooses the other one, and the tokens after
that one attend to it: the worst fifth of a row's tokens is left out of the comparison. The choice
itself is compared token by token in `tests/unit/model/compiled/test_mixture.py`, where it is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import pytest

from lorry.model.memory import digest_of_base
from oracle.test_compiled import (
    CODES,
    FLIPPED,
    MEAN,
    WORST,
    Exact,
    _built,
    check_decode,
    compiled,
    exact,
    instructions,
)
from support import peft_made, tiny
from support.company import check_company
from support.compiled import forbid_packed
from support.described_families import MIXTURES
from support.executor_driver import Ask, load_tiny
from support.peft_kinds import KINDS
from support.peft_oracle import Adapters, PeftOracle
from support.prompts import random_prompt

__all__ = ("_built", "exact", "instructions")

CASES = [(family, kind) for family in MIXTURES for kind in ("int8", "nf4")]
EXACT = [*CASES, *((family, CODES) for family in MIXTURES)]
KEPT = 0.8
"""Of a row's tokens."""
LOUD = {"granitemoe": 2, "phimoe": 2}
"""How many times as far two right answers are apart: Granite's logits are louder, and PhiMoE's
parts jump where a score is about a given part below the largest."""

Adapter = Callable[..., Path]


def check(
    mine: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    family: str,
    quantization: str,
) -> None:
    times = (LOUD.get(family) or 1) * (1 if quantization == CODES else FLIPPED)
    for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        off = sorted(abs(x - y) for x, y in zip(a, b, strict=True))
        near = off[: round(KEPT * len(off))]
        assert max(near) < times * WORST, f"row {index}"
        assert fmean(near) < times * MEAN, f"row {index}"


@pytest.fixture
def asks(peft_adapter: Adapter) -> Callable[[str], list[Ask]]:
    def made(family: str) -> list[Ask]:
        a, b = (peft_adapter(family, variant, seed=1) for variant in ("plain", "one_module"))
        chosen: list[Adapters] = [[], [(a, 1.0)], [(b, 1.0)], [(a, 0.5)], [(a, 1.0), (b, 1.0)], []]
        return [Ask(one, random_prompt(37 + 3 * row, row)) for row, one in enumerate(chosen)]

    return made


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("family", "quantization"), EXACT)
def test_mixed_batch(
    family: str,
    quantization: str,
    tiny_model: Callable[[str], Path],
    asks: Callable[[str], list[Ask]],
    exact: Exact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = asks(family)
    theirs = exact(family, rows, quantization)
    forbid_packed(monkeypatch)
    answers = []
    for threads in (1, 2):
        with compiled(tiny_model(family), threads, quantization) as driver:
            for chunk in (None, 1, 5, 16):
                answers.append(driver.score(rows, chunk=chunk))
                check(answers[-1], theirs, family, quantization)
            base = driver.score([Ask([], ask.token_ids) for ask in rows])
    for row, mine in enumerate(answers[0]):
        far = fmean(abs(x - y) for x, y in zip(mine, base[row], strict=True))
        assert (far > 10 * MEAN) == bool(rows[row].adapters), "adapters are heard"


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("family", "quantization"), CASES)
def test_a_row_does_not_know_its_neighbours(
    family: str,
    quantization: str,
    threads: int,
    tiny_model: Callable[[str], Path],
    asks: Callable[[str], list[Ask]],
) -> None:
    rows = asks(family)
    with compiled(tiny_model(family), threads, quantization) as driver:
        before = digest_of_base(driver.loaded.model)
        check_company(driver, rows, 16)
        check_decode(driver, rows)
        assert digest_of_base(driver.loaded.model) == before


@pytest.mark.parametrize(("family", "quantization"), EXACT)
def test_adapters_of_experts_run_beside_it(
    family: str,
    quantization: str,
    tiny_model: Callable[[str], Path],
    asks: Callable[[str], list[Ask]],
    tmp_path: Path,
) -> None:
    """A row with one runs packed, over the same stacks; the others keep their bits."""
    has_gate = "mlp.gate.weight" in " ".join(load_tiny(tiny_model(family)).layout.parameters)
    kind = KINDS["target_parameters, router" if has_gate else "target_parameters"]
    made = peft_made.make(kind, family, tiny.build_model(family), tmp_path / "experts").folder
    rows, ids = asks(family), random_prompt(40, 9)
    oracle = PeftOracle(tiny_model(family), "int8" if quantization == CODES else quantization)
    oracle.multiply_exactly()
    theirs = oracle.prompt_logprobs([(made, 1.0)], ids)
    with compiled(tiny_model(family), 1, quantization) as driver:
        without = driver.score(rows)
        *others, mine = driver.score([*rows, Ask([(made, 1.0)], ids)])
        assert others == without
        check([mine], [theirs], family, quantization)
        base = driver.score([Ask([], ids)])[0]
        assert fmean(abs(x - y) for x, y in zip(mine, base, strict=True)) > 10 * MEAN


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_self_check_passes(quantization: str, tiny_model: Callable[[str], Path]) -> None:
    for family in MIXTURES:
        with compiled(tiny_model(family), 2, quantization, is_checked=True) as driver:
            assert driver.executor.paths.compiled is not None, family
