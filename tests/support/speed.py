"""The README's table of speed: figures of the results that benchmarks/README.md publishes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lorry.bench import preset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_PUBLISHED = re.compile(r"<!-- results: begin -->.*?commit (\w+);", re.DOTALL)
_COLUMNS = {
    "no adapter": preset.BASE_EIGHT,
    "one adapter": preset.ADAPTER_EIGHT,
    "eight adapters": preset.DISTINCT,
}


def published() -> dict[str, Any]:
    """Raises AssertionError if the page's commit has no file of results."""
    found = _PUBLISHED.search((BENCHMARKS / "README.md").read_text())
    assert found is not None, "benchmarks/README.md names no commit"
    (file,) = (BENCHMARKS / "results").glob(f"*-{found[1]}.json")
    results = json.loads(file.read_text())
    assert isinstance(results, dict)
    return results


def table() -> str:
    """Tokens/s by server, and the machine that they were measured on."""
    results = published()
    lorry = results["lorry"]
    servers = {f"Lorry, {lorry['server']['quantization']}": _rows(lorry)}
    servers |= {name: _rows(peer) for name, peer in results["peers"].items()}
    for kind, rows in results["peft"]["rows"].items():
        servers[f"transformers + PEFT, in process, {kind}"] = rows
    lines = [
        f"| | {' | '.join(_COLUMNS)} | first token |",
        "|---|" + "--:|" * (len(_COLUMNS) + 1),
        *(f"| {name} | {_cells(rows)} |" for name, rows in servers.items()),
        "",
        f"SmolLM2-135M, adapters of rank 16; {_machine(results['machine'])}.",
        "",
    ]
    return "\n".join(lines)


def _rows(document: Any) -> dict[str, Any]:
    return {row["name"]: row["figures"] for row in document["rows"]}


def _cells(rows: dict[str, Any]) -> str:
    rates = [f"{rows[name]['tokens_per_second']:.1f}" for name in _COLUMNS.values()]
    first = rows[preset.DISTINCT]["first_token"]
    # In process nothing is streamed, so there is a prompt's time and no client that waits.
    waited = f"{first['p50'] * 1000:.0f} ms" if isinstance(first, dict) else "-"
    return " | ".join([*rates, waited])


def _machine(machine: dict[str, Any]) -> str:
    day, memory = machine["when"][:10], machine["memory"] / (1 << 30)
    where = f"{machine['cores']} cores of {machine['cpu']} with {memory:.0f} GiB"
    return f"{where}, {day}, commit {machine['commit']}"
