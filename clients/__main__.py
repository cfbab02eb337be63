"""`make clients`: the real clients against a live server; renews the table of clients/README.md.

    make clients                         every client, on the default base
    make clients ARGS=sdks               one group of them: a folder beside this file
    make clients-quick                   part of `make test`: one group, a tiny base; writes nothing
    make clients ARGS="sdks -- -k tools" further arguments are pytest's; writes nothing

Each group has an environment of its own in build/clients, made from its pinned requirements.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clients import environment, outcomes, table
from clients.catalog import CLIENTS, QUICK, groups
from clients.served import default_base, tiny_base

FOREIGN = ("OPENAI_", "ANTHROPIC_", "HF_", "LORRY_", "LITELLM_", "PYTHONPATH")
"""How variables begin that could send a client elsewhere, or hide a fault from it."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make clients", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(groups()))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} alone, on a tiny base")
    arguments, further = _split(sys.argv[1:])
    given = parser.parse_args(arguments)
    if unknown := set(given.groups) - set(groups()):
        parser.error(f"{', '.join(sorted(unknown))}: no group; there are {', '.join(groups())}")
    try:
        chosen = built((QUICK,) if given.quick else given.groups)
    except environment.ClientsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ran: dict[str, outcomes.Row | None] = {}
    failed = []
    with tiny_base() if given.quick else default_base() as server:
        for client in CLIENTS:
            if client.group not in chosen:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                junit = Path(scratch) / "junit.xml"
                print(f"==> {client.name} {client.version}", flush=True)
                if run(environment.command(client.file, junit, further), server.url) != 0:
                    failed.append(client.name)
                    print(f"==> the end of the server's log\n{server.tail()}", file=sys.stderr)
                ran[client.name] = outcomes.read(client, junit) if junit.exists() else None
    if not given.quick and not further:
        rows = outcomes.renewed(outcomes.load(), ran)
        outcomes.save(rows)
        table.write(rows)
    if failed:
        print(f"error: tests of {', '.join(failed)} fail", file=sys.stderr)
    return bool(failed)


def built(wanted: Sequence[str]) -> list[str]:
    """The groups that can be run: those `wanted`, or else all but what needs a missing Node.js."""
    chosen = []
    for group in wanted or groups():
        try:
            environment.build(group)
        except environment.NoNodeError as error:
            if wanted:
                raise
            print(f"==> left out, its rows stay as they are: {error}", flush=True)
        else:
            chosen.append(group)
    return chosen


def run(command: list[str], url: str) -> int:
    """Runs one client's tests against the server at `url`; the exit status."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}
    environ |= {"LORRY_URL": url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        command, cwd=environment.BUILT, env=environ, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before a bare `--`, and what behind."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
