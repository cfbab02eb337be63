"""What keeps C from somebody else's memory is there in every mode of the interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorry.model import guard
from lorry.model.guard import Unsafe, require
from lorry.model.native.edges import rows_of
from lorry.model.native.selection import _address

NATIVE = Path(guard.__file__).parent / "native"

NO_MEMORY = {
    "sum((rank > 0 for _, _, rank in places.values())) == len(pairs)",
    "isinstance(delta, Shift)",
    "gains is not None",
}
"""What else is asserted there: nothing that C reads depends on it."""


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
        for file in NATIVE.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert)
    }
    assert asserted == NO_MEMORY


def test_without_assertions_it_still_refuses() -> None:
    code = "from lorry.model.guard import require; require(False, 'out of bounds')"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, check=False)
    assert done.returncode == 1 and b"Unsafe: out of bounds" in done.stderr
