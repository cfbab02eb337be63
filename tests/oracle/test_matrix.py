"""Every kind of adapter that PEFT can build, on every base: served as PEFT says, or refused.

Saved by PEFT, uploaded over HTTP; alone, and in one batch [base, this, a plain LoRA, this
at half its strength]. `support/matrix_refused.py` lists what is not served; it is held to
exactly. A run takes a part of the cells (`matrix.chosen`); all of them:
`pytest tests/oracle/test_matrix.py --whole-matrix`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from peft import PeftType

from lorry_adapters.lora.methods.method_table import METHODS
from support import families, matrix, padded_families, tiny
from support.kind import Strength
from support.matrix import Cell, State
from support.matrix_bench import Bench, bench
from support.matrix_refused import IMPOSSIBLE, REFUSED
from support.peft_kinds import KINDS, NOT_BUILT
from support.peft_made import Made, prompt_logprobs

HERE = Path(__file__).parent
ELSEWHERE = {"BOTTLENECK": "test_adapterhub.py", "MULTITASK_PROMPT_TUNING": "test_prompts.py"}
"""Methods that PEFT does not have, or saves for several tasks, and what compares them."""
TOLERANCE = 1e-4
LOUD = 0.01
"""The least change of some logprob by an adapter: a hundred times the tolerance."""
TOGETHER = ("lora", "dora", "ia3", "prompt tuning", "lokr", "modules_to_save=head")
"""What is asked in one batch, of those that are served."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`lorry` is a base's server, one at a time; `cell` follows it, so that it serves all of
    its cells before the next one starts."""
    if "cell" in metafunc.fixturenames:
        found = list(matrix.cells())
        if not metafunc.config.getoption("--whole-matrix"):
            found = matrix.chosen(found)
        metafunc.parametrize(
            ("lorry", "cell"),
            [(cell.base, cell) for cell in found],
            indirect=["lorry"],
            ids=[cell.name.replace(" ", "-") for cell in found],
            scope="module",
        )
    elif "lorry" in metafunc.fixturenames:
        # A tied base is asked for the kinds that reach for its embeddings only.
        bases = [base for base in matrix.BASES if base != "llama_tied"]
        metafunc.parametrize("lorry", bases, indirect=True, scope="module")


@pytest.fixture(scope="module")
def lorry(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("matrix")
    with bench(tiny_model(request.param), request.param, home) as found:
        yield found


def test_cell(cell: Cell, lorry: Bench) -> None:
    if cell.state is State.IMPOSSIBLE:
        check_impossible(cell, lorry)
        return
    made = lorry.make(cell.kind)
    answer = lorry.upload("this", made.folder)
    try:
        if cell.state is State.REFUSED:
            assert answer.status_code == 422, f"{cell.name} is served now: take it off the list"
            assert cell.reason is not None and cell.reason in answer.text
        else:
            check_served(cell, lorry, made, answer)
    finally:
        if answer.status_code == 201:
            lorry.remove("this")


def check_served(cell: Cell, lorry: Bench, made: Made, answer: httpx.Response) -> None:
    assert answer.status_code == 201, f"{cell.name}: {answer.text[:300]}"
    alone = lorry.ask(("this", 1.0))
    assert lorry.error(alone, made) < TOLERANCE
    assert_loud(cell, lorry, made, alone)
    if cell.kind.strength is not Strength.NONE:
        base, one, plain, half = lorry.ask_together(
            [None, ("this", 1.0), ("plain", 1.0), ("this", 0.5)]
        )
        assert lorry.error(half, made, 0.5) < TOLERANCE, "half"
    else:
        refused = lorry.ask(("this", 0.5))
        assert (refused.status_code, "scale" in refused.text) == (422, True), refused.text
        base, one, plain = lorry.ask_together([None, ("this", 1.0), ("plain", 1.0)])
    assert lorry.error(base, None) < TOLERANCE, "base"
    assert lorry.error(one, made) < TOLERANCE, "this"
    assert lorry.error(plain, lorry.plain) < TOLERANCE, "plain"


def assert_loud(cell: Cell, lorry: Bench, made: Made, answer: httpx.Response) -> None:
    """What the tolerance could hide is not what a cell compares."""
    details = answer.json()["details"]
    ids = tuple(entry["id"] for entry in details["prefill"] + details["tokens"])
    numbers = [lorry.expected(ids, made), lorry.expected(ids, None)]
    if cell.kind.strength is not Strength.NONE:
        numbers.append(lorry.expected(ids, made, 0.5))
    for i, mine in enumerate(numbers):
        for other in numbers[:i]:
            assert max(abs(a - b) for a, b in zip(mine, other, strict=True)) > LOUD, cell.name


def check_impossible(cell: Cell, lorry: Bench) -> None:
    with pytest.raises(Exception, match=re.escape(cell.reason or "")):
        made = lorry.make(cell.kind)
        prompt_logprobs(made.model, [1, 2, 3, 4])


def test_kinds_of_different_families_in_one_batch(lorry: Bench) -> None:
    """And the plain LoRA twice: a row that another kind changed shows."""
    served = [
        cell
        for cell in matrix.cells()
        if cell.base == lorry.family and cell.state is State.SERVED and cell.kind.name in TOGETHER
    ]
    mades = {f"kind{i}": lorry.make(cell.kind, seed=3) for i, cell in enumerate(served)}
    for name, made in mades.items():
        assert lorry.upload(name, made.folder).status_code == 201
    try:
        for name in mades:
            lorry.ask((name, 1.0)).raise_for_status()
        rows = [("plain", 0.5), None, *((name, 1.0) for name in mades), ("plain", 1.0)]
        first, base, *mixed, last = lorry.ask_together(rows)
        assert lorry.error(first, lorry.plain, 0.5) < TOLERANCE
        assert lorry.error(base, None) < TOLERANCE
        assert lorry.error(last, lorry.plain) < TOLERANCE
        for answer, made in zip(mixed, mades.values(), strict=True):
            assert lorry.error(answer, made) < TOLERANCE, made.kind.name
    finally:
        for name in mades:
            lorry.remove(name)


def test_nothing_is_listed_that_is_no_cell() -> None:
    names = {cell.name for cell in matrix.cells()}
    known = {*names, *KINDS}
    assert {*REFUSED, *IMPOSSIBLE} <= known
    assert {*matrix.BASES} == {*families.FAMILIES, *padded_families.UNPACKABLE}


def test_every_method_of_peft_is_in_the_matrix() -> None:
    llama = tiny.family(matrix.MAIN)
    built = {kind.config(llama).peft_type for kind in KINDS.values() if kind.fits(llama)}
    assert {method.name for method in PeftType} == {method.name for method in built} | {*NOT_BUILT}


def test_every_method_that_is_served_is_compared_with_its_own_library() -> None:
    """On the main base at least; what is not compared here is elsewhere, as decision 0029 says."""
    llama = tiny.family(matrix.MAIN)
    compared = {
        str(cell.kind.config(llama).peft_type.value)
        for cell in matrix.cells()
        if cell.base == matrix.MAIN and cell.state is State.SERVED
    }
    assert compared <= {*METHODS}
    assert {*METHODS} - compared == {*ELSEWHERE}
    for name, file in ELSEWHERE.items():
        assert METHODS[name].title.split()[0].lower() in (HERE / file).read_text().lower()


def test_the_table_is_in_the_readme() -> None:
    assert matrix.written() == matrix.table(), "run: make docs"
