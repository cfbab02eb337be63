"""`lorry doctor`: reports what this machine supports, problems that stop a server's start, and what
to do about either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from lorry.cli import doctor_libraries, doctor_machine
from lorry.cli.finding import Finding, FindingState
from lorry.cli.output import AsJson, report, write_json, write_line
from lorry.configuration import load_settings
from lorry.settings import Settings

CHECKS = (*doctor_machine.CHECKS, *doctor_libraries.CHECKS)
"""The slow ones (torch) after the quick ones."""


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    host: Annotated[
        str | None, typer.Option("--host", metavar="TEXT", help="The address to listen on.")
    ] = None,
    port: Annotated[
        str | None, typer.Option("--port", metavar="N", help="The port to try.")
    ] = None,
    home: Annotated[
        str | None, typer.Option("--home", metavar="PATH", help="The folder to try.")
    ] = None,
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="N", help="Threads to read memory with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what this machine can do, and what to do about what it cannot.

    Variables such as LORRY_STORE count, too. The exit code is 1 if a server could not run.
    """
    given = {"host": host, "port": port, "home": home, "threads": threads}
    findings = []
    for finding in examine(load_settings(given, os.environ)):
        findings.append(finding)
        if not as_json:
            write_line(f"{finding.state:<8} {finding.topic:<13} {finding.text}")
            if finding.advice is not None:
                write_line(f"{'':<22} -> {finding.advice}")
    problems = sum(finding.state is FindingState.PROBLEM for finding in findings)
    if as_json:
        write_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    if problems:
        report(f"error: {problems} problem{'s' if problems > 1 else ''} found")
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """One finding after the other, as they are made."""
    for check in CHECKS:
        yield from check(settings)
