"""Kinds that the compiled step does not know, beside it: the same answers as without it, and the
rows that it runs do not notice them. Those that it knows are `test_vector_deltas.py`'s and
`test_matrix_deltas.py`'s."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lorry_adapters.lora import weights
from support.compiled import in_codes, require_compiled_step
from support.executor_driver import Ask, ExecutorDriver, token_ids
from support.peft_kinds import KINDS
from support.peft_made import make
from support.prompts import random_prompt

FAMILIES = ("llama", "gemma2", "gptj")
"""The last one's rows run padded there."""
NAMES = ("kasa", "ln_tuning", "modules_to_save=norm")
KNOWN = ("dora", "ia3", "lokr")
"""They run on the compiled step, but for sums with the others."""
BOTTLENECK = Path(__file__).parent / "adapterhub" / "llama-pfeiffer"
APART = 0.05
"""Of a log-probability. Both paths round activations to 13 bits, where a difference in a
sum's last digit can flip a code."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(family)


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Iterator[ExecutorDriver]:
    require_compiled_step()
    with in_codes():
        driver = ExecutorDriver(folder, quantization="int8", kernels="compiled", threads=2)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def torch_only(folder: Path) -> ExecutorDriver:
    return ExecutorDriver(folder, quantization="int8")


@pytest.fixture(scope="module")
def made(family: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = AutoModelForCausalLM.from_pretrained(folder)
    root = tmp_path_factory.mktemp("made")
    found = {
        name: make(KINDS[name], family, base, root / f"{i}" / "adapter").folder
        for i, name in enumerate(NAMES)
    }
    if family != "llama":
        return found
    found["bottleneck"] = bottleneck = root / "bottleneck"
    bottleneck.mkdir()
    for theirs, ours in (("adapter_config.json",) * 2, (weights.HUB_FILE, weights.WEIGHTS_FILE)):
        shutil.copy(BOTTLENECK / theirs, bottleneck / ours)
    return found


@pytest.fixture(scope="module")
def known(family: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = AutoModelForCausalLM.from_pretrained(folder)
    root = tmp_path_factory.mktemp("known")
    return {name: make(KINDS[name], family, base, root / name).folder for name in KNOWN}


def asks(made: dict[str, Path], known: dict[str, Path], plain: Path) -> list[Ask]:
    one = [Ask([(path, 1.0)], random_prompt(9 + i, seed=i)) for i, path in enumerate(made.values())]
    half = [Ask([(path, 0.5)], random_prompt(7, seed=20)) for path in made.values()]
    summed = [
        Ask([(made[name], 1.0), (other, 0.7)], random_prompt(11, seed=30))
        for name in ("kasa", "bottleneck")
        if name in made
        for other in (plain, *known.values())
    ]
    return [*one, *half, *summed]


def company(known: dict[str, Path], plain: Path) -> list[Ask]:
    return [
        Ask([], random_prompt(12, seed=40)),
        Ask([(plain, 1.0)], random_prompt(5, seed=41)),
        Ask([(plain, -0.5)], random_prompt(17, seed=42)),
        *(Ask([(path, 0.3)], random_prompt(8, seed=43)) for path in known.values()),
    ]


def test_the_answers_are_those_of_the_packed_model_alone(
    compiled: ExecutorDriver,
    torch_only: ExecutorDriver,
    made: dict[str, Path],
    known: dict[str, Path],
    family: str,
    peft_adapter: Callable[..., Path],
) -> None:
    plain = peft_adapter(family, "plain")
    wanted = asks(made, known, plain)
    expected = torch_only.score(wanted)
    # The company's adapters are rounded to 8 bits: `test_compiled.py` says what that costs.
    found = compiled.score([*wanted, *company(known, plain)])[: len(wanted)]
    for want, have in zip(expected, found, strict=True):
        assert max(abs(w - h) for w, h in zip(want, have, strict=True)) < APART


def test_rows_on_the_compiled_step_do_not_notice(
    compiled: ExecutorDriver,
    made: dict[str, Path],
    known: dict[str, Path],
    family: str,
    peft_adapter: Callable[..., Path],
) -> None:
    plain = peft_adapter(family, "plain")
    mine = company(known, plain)
    alone = compiled.score(mine)
    among = compiled.score([*asks(made, known, plain), *mine])
    assert among[-len(alone) :] == alone
    drawn = compiled.greedy(mine, 6)
    beside = compiled.greedy([*asks(made, known, plain), *mine], 6)
    assert [token_ids(row) for row in beside[-len(drawn) :]] == [token_ids(row) for row in drawn]


def test_a_slot_that_changes_its_kind_changes_its_path(
    compiled: ExecutorDriver,
    made: dict[str, Path],
    known: dict[str, Path],
    family: str,
    peft_adapter: Callable[..., Path],
) -> None:
    plain = peft_adapter(family, "plain")
    slot = compiled.slot_of(plain)
    order = (plain, made["kasa"], known["dora"], list(made.values())[-1], known["ia3"])
    answers: dict[Path, list[list[float]]] = {}
    for path in (*order, *order[::-1], *order):
        compiled.place(slot, path)
        answer = compiled.score([Ask([(path, 1.0)], random_prompt(9, seed=50))])
        assert answers.setdefault(path, answer) == answer
    assert len({tuple(answer[0]) for answer in answers.values()}) == len(order)
    compiled.place(slot, plain)
