"""`lorry adapters recover`: makes adapters of stored files whose records were lost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorry.cli.output import (
    AsJson,
    report,
    report_error,
    write_json,
    write_line,
    write_table,
)
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, ServerError, Url
from lorry.errors import SettingsError
from lorry.option import format_size


def recover(
    digests: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIGEST...]", help="Only these, or those that begin so."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="Its name, if there is only one."),
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Only list them.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make adapters of stored files that belong to none, as after a loss of the catalog.

    Each is verified like a new upload. Without --name it is named by its digest.
    """
    with Connection(url, api_key) as server:
        found = _chosen(server.request("GET", "/unclaimed")["unclaimed"], digests or [])
        if only_list:
            _show(found, as_json)
            return
        if name is not None and len(found) != 1:
            raise SettingsError(f"--name is for one content, and there are {len(found)}; name it")
        records = []
        refused = 0
        for content in found:
            body = {"digest": content["digest"], "name": name}
            try:
                records.append(server.request("POST", "/unclaimed", json=body))
            except ServerError as error:
                refused += 1
                report_error(f"{content['digest']}: {error.message}")
                continue
            if not as_json:
                record = records[-1]
                write_line(f"{record['name']}@{record['version']} {record['digest']}: recovered")
    if as_json:
        write_json({"recovered": records})
    elif not found:
        report("no stored files without an adapter")
    if refused:
        raise typer.Exit(1)


def _chosen(found: list[dict[str, Any]], digests: list[str]) -> list[dict[str, Any]]:
    if not digests:
        return found
    chosen = []
    for digest in digests:
        begin = digest if digest.startswith("sha256:") else f"sha256:{digest}"
        like = [content for content in found if content["digest"].startswith(begin)]
        if len(like) != 1:
            raise ServerError(
                f"{digest} is the begin of {len(like)} stored contents without an adapter; "
                "`lorry adapters recover --list` shows all"
            )
        chosen += like
    return chosen


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        write_json({"unclaimed": found})
    elif not found:
        report("no stored files without an adapter")
    else:
        write_table(
            ("digest", "size", "without since", "kept until"),
            [(c["digest"], format_size(c["bytes"]), *_times(c)) for c in found],
        )


def _times(content: dict[str, Any]) -> tuple[str | None, str]:
    since, until = content["since"], content["kept_until"]
    return since and since[:16], "in the store" if until is None else until[:16]
