"""`make bench`: our server, then PEFT in process, then memory and loading, in one hour; the goals.

    make bench                                     everything that the CPU rows of the results need
    make bench ARGS="--requests 2000"              memory over fewer requests
    make bench ARGS="--peer llama.cpp=llamacpp@http://127.0.0.1:8080"
                                                   the same workload against a server of somebody's
    make bench ARGS="--only w,peft"                parts of it: w, zipf, peft, hot, memory
    make bench ARGS=--publish                      writes the tables into benchmarks/README.md, too

The tables and every figure go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import goals
from lorry.bench import machine, report
from lorry.bench.campaign import APIS

HERE = Path(__file__).parent
PARTS = ("w", "zipf", "peft", "hot", "memory")
SECTION = re.compile(r"(<!-- results: begin -->\n).*?(<!-- results: end -->)", re.DOTALL)

QUARTERS = 4


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=API@URL")
    parser.add_argument("--requests", type=int, default=10_000, help="of the memory part")
    parser.add_argument("--repeats", type=int, default=3, help="of workload W")
    parser.add_argument("--model", help="the base, as for lorry serve")
    parser.add_argument("--home", help="where the base is cached, as for lorry serve")
    parser.add_argument("--into", type=Path, default=HERE / "results", metavar="DIR")
    parser.add_argument("--publish", action="store_true")
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    peers = dict(_peer(parser, text) for text in given.peer)
    shared = [f"--{name}={value}" for name in ("model", "home") if (value := getattr(given, name))]

    started = time.monotonic()
    where = machine.look()
    say(where.one_line)
    results: dict[str, Any] = {"machine": asdict(where), "peers": {}}
    repeats = f"--repeats={given.repeats}"
    if "w" in parts or "zipf" in parts:
        zipf = ["--zipf"] if "zipf" in parts else []
        results["lorry"] = bench("--preset=W", *zipf, repeats, *shared)
    for name, (api, url) in peers.items():
        results["peers"][name] = bench("--preset=W", repeats, f"--api={api}", f"--url={url}")
    if "peft" in parts:
        results["peft"] = module("benchmarks.peft_mixed", *shared)
    if "hot" in parts:
        results["hot_load"] = module("benchmarks.hot_load", *shared)
    if "memory" in parts:
        results["memory"] = bench(
            f"--requests={max(1, given.requests // QUARTERS)}",
            f"--repeats={QUARTERS}",
            "--adapters=8",
            "--popularity=uniform",
            "--random-scales",
            "--prompt-words=2-12",
            "--new-tokens=1-8",
            *shared,
        )
    text = page(where, results)
    minutes = (time.monotonic() - started) / 60
    sys.stdout.write(text)
    say(f"{minutes:.1f} minutes")
    stem = re.sub(r"[^a-z0-9]+", "-", f"{where.when[:10]} {where.cpu} {where.commit or ''}".lower())
    report.write_json(given.into / f"{stem.strip('-')}.json", results)
    report.write(given.into / f"{stem.strip('-')}.md", text)
    if given.publish:
        readme = HERE / "README.md"
        published = SECTION.sub(lambda marks: marks[1] + text + marks[2], readme.read_text())
        readme.write_text(published)
    return 0


def bench(*arguments: str) -> Any:
    """The JSON of `lorry bench`. Its table and its progress are shown as they come."""
    return module("lorry", "bench", *arguments)


def module(name: str, *arguments: str) -> Any:
    """Each part is a process of its own: none inherits another's memory or threads."""
    say(f"==> python -m {name} {' '.join(arguments)}")
    with tempfile.TemporaryDirectory(prefix="lorry-bench-") as scratch:
        file = Path(scratch) / "figures.json"
        command = [sys.executable, "-m", name, *arguments, "--json", str(file)]
        status = subprocess.run(command, check=False).returncode
        if not file.is_file():
            raise SystemExit(f"error: {' '.join(command[1:3])} ended with status {status}")
        return json.loads(file.read_text())


def page(where: machine.Machine, results: dict[str, Any]) -> str:
    """The results in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in where.packages.items())
    lines = [
        f"{where.when}; {where.one_line}; {where.memory / (1 << 30):.0f} GiB; "
        f"{', '.join(where.instructions)}; Python {where.python}; {versions}.",
        "",
    ]
    for title, document in _documents(results):
        lines += [f"**{title}**", "", *_table(document), ""]
    if results.get("peft"):
        lines += ["**transformers + PEFT, in process**", "", *_peft(results["peft"]["rows"]), ""]
    lines += ["**Goals**", "", *_markdown(goals.COLUMNS, [g.cells for g in goals.lines(results)])]
    return "\n".join(lines) + "\n"


def _documents(results: dict[str, Any]) -> list[tuple[str, Any]]:
    found = []
    if results.get("lorry"):
        server = results["lorry"]["server"]
        title = f"Lorry, {server['model_id']} in {server['quantization']}"
        found.append((f"{title}, {server.get('kernels')} kernels", results["lorry"]))
    found += list(results["peers"].items())
    if results.get("memory"):
        found.append(("Memory: short requests, random adapters and scales", results["memory"]))
    return found


def _table(document: Any) -> list[str]:
    latencies = ("first token p50/p90/p99 ms", "per token p50/p90/p99 ms", "whole answer p50 s")
    columns = ("", "tokens/s", "of repeats", *latencies, "errors")
    rows = []
    for row in document["rows"]:
        figures = row["figures"]
        rates = figures["throughputs"]
        rows.append(
            (
                row["name"],
                f"{figures['tokens_per_second'] or 0:.1f}",
                f"{min(rates):.1f}-{max(rates):.1f}",
                _spread(figures["first_token"], 0),
                _spread(figures["per_token"], 1),
                f"{figures['end_to_end']['p50'] or 0:.2f}",
                str(figures["errors"]),
            )
        )
    return _markdown(columns, rows)


def _peft(kinds: dict[str, Any]) -> list[str]:
    names = list(next(iter(kinds.values())))
    rows = [
        (name, *(f"{kinds[kind][name]['tokens_per_second']:.1f}" for kind in kinds))
        for name in names
    ]
    return _markdown(("tokens/s", *kinds), rows)


def _spread(spread: dict[str, float | None], places: int) -> str:
    return " / ".join("-" if x is None else f"{x * 1000:.{places}f}" for x in spread.values())


def _markdown(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _peer(parser: argparse.ArgumentParser, text: str) -> tuple[str, tuple[str, str]]:
    found = re.fullmatch(r"([^=]+)=(\w+)@(https?://.+)", text)
    if found is None or found[2] not in APIS:
        parser.error(f"--peer {text}: give NAME=API@URL with an API of {', '.join(APIS)}")
    return found[1], (found[2], found[3])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
