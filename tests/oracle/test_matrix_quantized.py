"""Kinds of adapters on quantized bases, against PEFT: alone, and mixed as in the matrix.

nf4, where the kind leaves the base's product as it is: PEFT over the same bitsandbytes base,
within the tolerance of test_quantized.py, as the same kernel runs on both sides.

nf4, where PEFT's layer reads the base's weight or asks it for another product, and int8, where it
reads the weight and cannot read codes: PEFT over the dequantized base (why:
`peft_made.dequantized`). On a processor with AVX512-BF16 the server's base rounds what it
multiplies to bfloat16, which a logprob shows by 0.04 in the mean and 0.4 at worst. Stated: 0.1
in the mean, 1.0 for any token.

int8: PEFT over the same integers, multiplied exactly; 0.006 in the mean and 0.04 for any
token, or what bitsandbytes' own rounding takes, 0.2 and 1.0, where our kernels cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import httpx
import pytest

from lorry.model import int8
from support import peft_made
from support.kind import Strength
from support.matrix_bench import Bench, bench
from support.peft_kinds import KINDS
from support.peft_made import Made, dequantized
from support.peft_oracle import PeftOracle

BASE = "llama"
BESIDE = (
    "lora",
    "rslora",
    "rank_pattern",
    "lora_bias",
    "modules_to_save=head",
    "modules_to_save=embeddings",
    "modules_to_save=norm",
    "lm_head target",
    "embeddings target",
    "trainable_token_indices",
    "alora",
    "ia3",
    "adalora",
    "vera",
    "ln_tuning",
    "trainable_tokens",
    "beft",
    "bdlora",
    "monteclora",
    "kasa",
    "prompt tuning",
    "p-tuning",
    "prefix tuning",
    "cpt",
)
"""These add to the base's answer, or come before it."""
READING = (
    "dora",
    "dora, patterns",
    "ia3, feedforward",
    "loha",
    "lokr",
    "oft",
    "hra",
    "road",
    "hira",
    "delora",
    "fourierft",
    "miss",
    "randlora",
    "gralora",
    "shira",
)
"""These read the base's weight, or have it multiply something else."""
WEIGHT_ALONE = ("kasa", "osf", "frod", "peanut", "supertuning")
"""These read it as it is stored, so that PEFT has no number for codes."""
NOT_ON_NF4 = ("frod",)
"""Its random lengths are twenty times those of the shortest columns, and magnify as much what a
processor with AVX512-BF16 rounds."""
NOT_ON_INT8 = ("modules_to_save=head", "hra", "delora")
"""A head that is saved whole is rounded to 8 bits by us and not by PEFT; the other two PEFT
cannot build on int8 (HRA reads integers as weights)."""


@dataclass(frozen=True)
class Ground:
    """How a base is quantized, what PEFT builds on, and how near the two must be."""

    quantization: str
    exact: bool
    plain: bool
    """PEFT over the same numbers in plain linears."""
    kinds: tuple[str, ...]
    mean: float
    worst: float
    middle: float = 1.0

    @property
    def name(self) -> str:
        how = "plain" if self.plain else "exact" if self.exact else "same"
        return f"{self.quantization}-{how}"

    def check(self, errors: list[float]) -> None:
        assert fmean(errors) < self.mean
        assert max(errors) < self.worst
        assert median(errors) < self.middle


_INT8 = (0.006, 0.04) if int8.available() else (0.2, 1.0)
GROUNDS = (
    Ground("nf4", False, False, BESIDE, mean=0.02, worst=0.15, middle=1e-3),
    Ground(
        "nf4",
        True,
        True,
        tuple(kind for kind in READING + WEIGHT_ALONE if kind not in NOT_ON_NF4),
        mean=0.1,
        worst=1.0,
    ),
    Ground("int8", True, True, WEIGHT_ALONE, *_INT8),
    Ground(
        "int8",
        True,
        False,
        tuple(kind for kind in BESIDE + READING if kind not in NOT_ON_INT8),
        *_INT8,
    ),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ground" not in metafunc.fixturenames:
        return
    cells = [(ground, kind) for ground in GROUNDS for kind in ground.kinds]
    metafunc.parametrize(
        ("ground", "kind"),
        cells,
        ids=[f"{kind.replace(' ', '-')}-on-{ground.name}" for ground, kind in cells],
        scope="module",
    )


@pytest.fixture(scope="module")
def lorry(
    ground: Ground,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    oracle = PeftOracle(tiny_model(BASE), ground.quantization)
    if ground.exact and ground.quantization == "int8":
        oracle.multiply_exactly()
    base = dequantized(oracle.base) if ground.plain else oracle.base
    home = tmp_path_factory.mktemp(ground.name)
    # The compiled step holds plain pairs in 8 bits, which test_compiled.py is about; these
    # adapters are loud, and the kinds here do not run on it.
    more = {"quantize": ground.quantization, "kernels": "torch"}
    with bench(tiny_model(BASE), BASE, home, base=base, **more) as found:
        yield found


def test_quantized_cell(ground: Ground, kind: str, lorry: Bench) -> None:
    made = lorry.make(KINDS[kind])
    answer = lorry.upload("this", made.folder)
    assert answer.status_code == 201, answer.text[:300]
    try:
        check(ground, lorry, made)
    finally:
        lorry.remove("this")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_singular_vectors_of_rounded_weights_are_refused(
    quantization: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """PSOFT belongs to the signs of the exact ones."""
    model = tiny_model(BASE)
    made = peft_made.make(KINDS["psoft"], BASE, peft_made.load_base(model), tmp_path / "psoft")
    with bench(model, BASE, tmp_path, quantize=quantization) as lorry:
        answer = lorry.upload("this", made.folder)
    assert answer.status_code == 422
    assert "those of a quantized base differ" in answer.text


def check(ground: Ground, lorry: Bench, made: Made) -> None:
    alone = lorry.ask(("this", 1.0))
    ground.check(lorry.errors(alone, made))
    assert effect(lorry, made, alone) > 3 * ground.mean, "too quiet to tell anything"
    rows = [None, ("this", 1.0), ("plain", 1.0)]
    if made.kind.strength is not Strength.NONE:
        rows.append(("this", 0.5))
    base, this, plain, *half = lorry.ask_together(rows)
    ground.check(lorry.errors(base, None))
    ground.check(lorry.errors(this, made))
    ground.check(lorry.errors(plain, lorry.plain))
    for one in half:
        ground.check(lorry.errors(one, made, 0.5))


def effect(lorry: Bench, made: Made, answer: httpx.Response) -> float:
    """How far the adapter is from the base, in the mean."""
    details = answer.json()["details"]
    ids = tuple(entry["id"] for entry in details["prefill"] + details["tokens"])
    mine, base = lorry.expected(ids, made), lorry.expected(ids, None)
    return fmean(abs(a - b) for a, b in zip(mine, base, strict=True))
