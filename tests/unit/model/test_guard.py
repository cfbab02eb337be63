"""What keeps C from somebody else's memory is there in every mode of the interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorry.model import guard
from lorry.model.compiled.compiled_drawing import _address
from lorry.model.compiled.embedding_head import rows_of
from lorry.model.guard import Unsafe, require
from lorry_adapters.lora import kernels

STEP = "test_a_step_beyond_its_bounds_does_not_begin"
COMPILED = Path(guard.__file__).parent / "compiled"

KERNELS = Path(kernels.__file__).parent
FILES = [
    *COMPILED.glob("*.py"),
    *KERNELS.glob("*.py"),
    *(COMPILED.parent / name for name in ("int8.py", "paged.py", "inputs.py", "virtual_tokens.py")),
]
"""Between Python and memory that nobody guards."""

TYPES = {
    "isinstance(table, Tensor)",
    "isinstance(weight, Tensor)",
    "run.x_TH is not None and run.y_TH is not None",
    "isinstance(plan, TablePlan) and plan.table is not None",
    "plan.place_P is not None",
}
"""What else is asserted there, for the type checker: without it Python itself would raise."""


def test_it_says_what_must_hold() -> None:
    require(True, "nothing")
    with pytest.raises(Unsafe, match="7 tokens, room for 6"):
        require(False, "7 tokens, room for 6")


@pytest.mark.parametrize("address", [rows_of, _address])
@pytest.mark.parametrize(
    "values",
    [torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4).T[:2]],
    ids=["another type", "not in a row"],
)
def test_no_address_of_another_kind_of_numbers(address, values) -> None:
    with pytest.raises(Unsafe, match="float32"):
        address(values)


def test_no_address_depends_on_an_assertion() -> None:
    """`python -O` drops them."""
    asserted = {
        ast.unparse(node.test)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert)
    }
    assert asserted == TYPES


def test_without_assertions_the_bounds_hold() -> None:
    """The bounds' own tests once more, by an interpreter that has none: what they expect to be
    raised has to be raised still."""
    here = Path(__file__).parent / "compiled"
    tests = [str(here / "test_memory_bounds.py"), f"{here / 'test_step.py'}::{STEP}"]
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_without_assertions_a_requirement_raises() -> None:
    code = "from lorry.model.guard import require; require(False, 'out of bounds')"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, check=False)
    assert done.returncode == 1 and b"Unsafe: out of bounds" in done.stderr
