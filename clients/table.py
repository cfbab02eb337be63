"""The table of `README.md`: client by feature, from what came of the tests and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clients.catalog import CLIENTS, FEATURES, HERE, feature
from clients.outcomes import Row

README = HERE / "README.md"
_SECTION = re.compile(r"(<!-- table: begin -->\n)(.*?)(<!-- table: end -->)", re.DOTALL)


def render(rows: Mapping[str, Row]) -> str:
    """Markdown. A cell is empty where the client has no such thing or nothing tries it."""
    heads = ["Client", "Version", *FEATURES.values(), "Also"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + ":-:|" * len(FEATURES) + "---|"]
    notes: list[str] = []
    for client in CLIENTS:
        if (row := rows.get(client.name)) is None:
            continue
        cells = [f"`{client.name}`", row.version]
        cells += [_cell(_of(row, name), notes) for name in FEATURES]
        others = _of(row, None)
        cells.append(
            ", ".join(
                test.replace("_", " ") + (f" {_cell({test: why}, notes)}" if why else "")
                for test, why in others.items()
            )
        )
        lines.append("| " + " | ".join(cells) + " |")
    if notes:
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    days = sorted(row.ran for row in rows.values())
    if days:
        lines += ["", "Run on " + " to ".join(dict.fromkeys((days[0], days[-1]))) + "."]
    return "\n".join(lines) + "\n"


def written() -> str:
    found = _SECTION.search(README.read_text())
    assert found is not None, "clients/README.md has no table"
    return found[2]


def write(rows: Mapping[str, Row]) -> None:
    text = render(rows)
    README.write_text(_SECTION.sub(lambda marks: marks[1] + text + marks[3], README.read_text()))


def _of(row: Row, name: str | None) -> dict[str, str]:
    return {test: why for test, why in row.tests.items() if feature(test) == name}


def _cell(tests: Mapping[str, str], notes: list[str]) -> str:
    """✔ where all pass; else ✘ with the numbers of the notes that say why; both where some do."""
    if not tests:
        return ""
    reasons = dict.fromkeys(why for why in tests.values() if why)
    if not reasons:
        return "✔"
    notes += [why for why in reasons if why not in notes]
    some = "" if all(tests.values()) else "✔ / "
    return f"{some}✘ " + ", ".join(f"({notes.index(why) + 1})" for why in reasons)
