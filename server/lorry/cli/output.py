"""The output of commands: tables for people, JSON for scripts, errors on one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")]

PIPE_WIDTH = 1000
"""Columns where nobody looks: a script's lines are not to be wrapped."""


def report_error(message: str) -> None:
    """One line on standard error, whatever line ends the message has."""
    typer.echo("error: " + " ".join(message.split()), err=True)


def in_a_line(problems: Iterable[object]) -> str:
    """All problems; of those that differ in their numbers alone, as when every layer has the
    same one, the first and how many are like it."""
    alike: dict[str, list[str]] = {}
    for problem in map(str, problems):
        alike.setdefault(re.sub(r"\d+", "0", problem), []).append(problem)
    return "; ".join(
        first + (f" (and {len(others)} like it)" if others else "")
        for first, *others in alike.values()
    )


def report(message: str) -> None:
    """One line of news on standard error, so that standard output stays the answer's."""
    typer.echo(message, err=True)


def write_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def write_line(text: str) -> None:
    typer.echo(text)


def write_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Cells are shown as they are: what a server says is never read as markup."""
    console = _stdout()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(
            row[index] is None or type(row[index]) in (int, float) for row in rows
        )
        table.add_column(
            Text(column), justify="right" if numbers else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def write_facts(facts: Sequence[tuple[str, object]]) -> None:
    """`name  value` lines, the values in one column."""
    console = _stdout()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(_cell(value)))
    console.print(table)


def _stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(str(item) for item in value) or "-"
        case _:
            return str(value)
