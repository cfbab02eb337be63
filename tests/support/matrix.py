"""Which kind of adapter is served on which base: every cell, and what is known of it.

`tests/oracle/test_matrix.py` holds each cell against the server: what is listed here as
refused must be refused in these words, and everything else must say what PEFT says.
`python -m support.matrix` prints all cells, and `--write` renews the table in
docs/kinds.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from support import tiny
from support.kind import Kind
from support.matrix_refused import IMPOSSIBLE, REFUSED
from support.peft_kinds import KINDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kinds.md"
_SECTION = re.compile(r"(<!-- matrix: begin -->\n)(.*?)(<!-- matrix: end -->)", re.DOTALL)

BASES: Mapping[str, str] = {
    "llama": "Llama",
    "llama_tied": "Llama, tied",
    "mistral": "Mistral",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "phi": "Phi",
    "phi3": "Phi-3",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
    "gptj": "GPT-J",
    "falcon": "Falcon",
    "bloom": "BLOOM",
    "opt": "OPT",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "granite": "Granite",
    "stablelm": "StableLM",
    "smollm3": "SmolLM3",
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen 2 MoE",
    "qwen3_moe": "Qwen 3 MoE",
}
"""The families that have a tiny model, in the order of the table. Qwen 1.5 and 2.5 are Qwen 2's
code."""

MAIN = "llama"
"""The base on which every kind is tried in every run."""


class State(StrEnum):
    SERVED = "served"
    REFUSED = "refused"
    IMPOSSIBLE = "PEFT cannot"


@dataclass(frozen=True, slots=True)
class Cell:
    kind: Kind
    base: str

    @property
    def name(self) -> str:
        return f"{self.kind.name} on {self.base}"

    @property
    def state(self) -> State:
        if _words(IMPOSSIBLE, self) is not None:
            return State.IMPOSSIBLE
        return State.SERVED if _words(REFUSED, self) is None else State.REFUSED

    @property
    def reason(self) -> str | None:
        """Words that the refusal (or PEFT's own error) must have; None where it is served."""
        return _words(IMPOSSIBLE, self) or _words(REFUSED, self)


def _words(table: Mapping[str, str], cell: Cell) -> str | None:
    return table.get(cell.name) or table.get(cell.kind.name)


def cells() -> Iterator[Cell]:
    """Every kind on every base that it fits; on a tied base, those that tying concerns."""
    for base in BASES:
        for kind in KINDS.values():
            tied = base == "llama_tied"
            if kind.fits(tiny.family(base)) and (not tied or kind.tied_too):
                yield Cell(kind, base)


def chosen(cells: list[Cell]) -> list[Cell]:
    """A part of the matrix for every run: each kind on the main base and on two others, each
    base with kinds of every group. Which two moves along from kind to kind, so that a kind
    and its neighbours in the table cover most bases between them."""
    others = [base for base in BASES if base != MAIN]
    names = list(KINDS)
    picked = []
    for cell in cells:
        at = names.index(cell.kind.name)
        mine = {others[at * 2 % len(others)], others[(at * 2 + 1) % len(others)], MAIN}
        if cell.base in mine or cell.kind.everywhere:
            picked.append(cell)
    return picked


def table() -> str:
    """A row a kind: where it is served, where not and why."""
    by_kind: dict[str, list[Cell]] = {}
    for cell in cells():
        by_kind.setdefault(cell.kind.name, []).append(cell)
    lines = []
    group = ""
    for name, row in by_kind.items():
        if KINDS[name].group != group:
            group = KINDS[name].group
            lines += ["", f"**{group}**", "", "| kind | served on | elsewhere |", "|---|---|---|"]
        lines.append(f"| {name} | {_served(row)} | {_elsewhere(row)} |")
    return "\n".join([*_counts(), *lines, ""])


def _counts() -> list[str]:
    found = list(cells())
    counts = {state: sum(cell.state is state for cell in found) for state in State}
    listed = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    return [f"{len(found)} cells, {len(KINDS)} kinds on {len(BASES)} bases: {listed}."]


def _served(row: list[Cell]) -> str:
    served = [BASES[cell.base] for cell in row if cell.state is State.SERVED]
    if not served:
        return "-"
    if len(served) == len(row) and len(served) > 3:
        return f"all {len(served)}"
    missing = [BASES[cell.base] for cell in row if cell.state is not State.SERVED]
    if len(served) > 3:
        return f"{len(served)}: all but {', '.join(missing)}"
    return ", ".join(served)


def _elsewhere(row: list[Cell]) -> str:
    reasons: dict[str, list[str]] = {}
    for cell in row:
        if cell.state in (State.REFUSED, State.IMPOSSIBLE):
            who = "" if cell.state is State.REFUSED else "PEFT: "
            reasons.setdefault(f"{who}{cell.reason}", []).append(BASES[cell.base])
    said = [
        reason if len(bases) == len(row) else f"{reason} ({', '.join(bases)})"
        for reason, bases in reasons.items()
    ]
    return "; ".join(said).replace("|", "\\|") or "-"


def written() -> str:
    """What docs/kinds.md says."""
    found = _SECTION.search(PAGE.read_text())
    assert found is not None, "docs/kinds.md has no section for the matrix"
    return found.group(2)


def listed() -> str:
    """Every cell in a line of its own."""
    return "\n".join(
        f"{cell.base:12} {cell.kind.name:32} {cell.state}"
        + (f": {cell.reason}" if cell.state in (State.REFUSED, State.IMPOSSIBLE) else "")
        for cell in cells()
    )


def main() -> None:
    if "--write" in sys.argv:
        text = PAGE.read_text()
        PAGE.write_text(_SECTION.sub(lambda m: m.group(1) + table() + m.group(3), text))
    else:
        sys.stdout.write(listed() + "\n" + "\n".join(_counts()) + "\n")


if __name__ == "__main__":
    main()
