"""LoKr, VeRA, OFT, sparse and measured kinds on the compiled step, against the packed model alone.

What is compared with PEFT is the packed model (`test_matrix.py`, `test_matrix_quantized.py`); here
both paths say the same. An adapter is in 8 bits on one of them, so they may be apart by a few
hundredths of what it does: `tests/unit/model/compiled/test_packed_matrices.py` has the exact
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest
from transformers import AutoModelForCausalLM

from support.company import check_company
from support.compiled import forbid_packed, in_codes, require_compiled_step
from support.executor_driver import NUM_SLOTS, Ask, ExecutorDriver
from support.families import FAMILIES as KNOWN
from support.peft_kinds import KINDS
from support.peft_made import make
from support.prompts import random_prompt

FAMILIES = ("llama", "qwen2", "phi3", "gpt2")
"""The second has biases, the third and the fourth have linears that are one."""
NAMES = (
    "lokr",
    "lokr, both decomposed",
    "vera",
    "vera, projections not saved",
    "oft",
    "hra",
    "loha",
    "boft",
    "fourierft",
    "c3a",
    "delora",
    "hira",
    "miss",
    "osf",
    "frod",
    "pvera",
    "randlora",
    "road",
    "vblora",
    "gralora",
    "shira",
    "supertuning",
)
NOT_ON_CONV1D = {"lokr", "lokr, both decomposed", "oft", "hra", "loha", "boft", "c3a", "delora"}
NOT_ON_CONV1D |= {"miss", "osf", "road", "shira", "supertuning"}
APART, SHARE = 0.006, 0.04
"""In the mean: of a log-probability, as without adapters, and of what an adapter does to it. LoRA's
share is 0.007 to 0.013 here, and most kinds' is no larger."""
LOUD = {"gralora": 3}
"""How many times as much: its pair is of blocks, and an output's few codes go to some of them."""


@dataclass(frozen=True)
class Ground:
    compiled: ExecutorDriver
    packed: ExecutorDriver
    made: Mapping[str, Path]
    plain: Path

    def together(self) -> list[Ask]:
        """As many kinds as there are slots, and sums of them."""
        folders = [*list(self.made.values())[: NUM_SLOTS - 1], self.plain]
        wishes = [
            [],
            *([(folder, scale)] for folder in folders for scale in (1.0, -0.5)),
            [(folder, 0.2) for folder in folders[:4]],
            [(folders[0], 0.5), (self.plain, 1.0)],
            [(folders[1], 0.5), (folders[2], 0.3)],
        ]
        return [Ask(wish, random_prompt(5 + 7 * (i % 4), i)) for i, wish in enumerate(wishes)]


@pytest.fixture(scope="module", params=FAMILIES)
def ground(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ground]:
    require_compiled_step()
    family: str = request.param
    base, root = tiny_model(family), tmp_path_factory.mktemp(family)
    model = AutoModelForCausalLM.from_pretrained(base)
    without = NOT_ON_CONV1D if KNOWN[family].conv1d else set()
    made = {
        name: make(KINDS[name], family, model, root / str(i), seed=i).folder
        for i, name in enumerate(NAMES)
        if name not in without
    }
    plain = make(KINDS["lora"], family, model, root / "plain").folder
    with in_codes():
        compiled = ExecutorDriver(base, quantization="int8", kernels="compiled", threads=2)
    yield Ground(compiled, ExecutorDriver(base, quantization="int8"), made, plain)
    compiled.close()


@pytest.fixture(autouse=True)
def _one_path(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_packed(monkeypatch, ground.packed.executor.paths.general)


def apart(want: Sequence[float], have: Sequence[float]) -> float:
    return fmean(abs(w - h) for w, h in zip(want, have, strict=True))


def test_each_by_itself(ground: Ground) -> None:
    for name, folder in ground.made.items():
        for driver in (ground.compiled, ground.packed):
            driver.forget_slots()
        for scale in (1.0, 0.5, -0.7):
            ids = random_prompt(24, 1)
            ask, base = Ask([(folder, scale)], ids), Ask([], ids)
            (want,), (quiet,) = ground.packed.score([ask]), ground.packed.score([base])
            bound = APART + (LOUD.get(name) or 1) * SHARE * apart(want, quiet)
            assert apart(want, quiet) > 4 * APART, (name, scale)
            for chunk in (None, 1, 7):
                (have,) = ground.compiled.score([ask], chunk=chunk)
                assert apart(want, have) < bound, (name, scale, chunk)


def test_sums(ground: Ground) -> None:
    for driver in (ground.compiled, ground.packed):
        driver.forget_slots()
    asks = ground.together()
    bases = [Ask([], ask.token_ids) for ask in asks]
    expected, quiet = ground.packed.score(asks), ground.packed.score(bases)
    found = ground.compiled.score(asks)
    for ask, want, have, base in zip(asks, expected, found, quiet, strict=True):
        assert apart(want, have) < APART + SHARE * apart(want, base), ask.adapters


def test_a_row_does_not_know_its_neighbours(ground: Ground) -> None:
    ground.compiled.forget_slots()
    check_company(ground.compiled, ground.together(), 6)
