"""`lorry audit`: who changed a server's adapters and keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorry.cli.adapter_commands import short
from lorry.cli.output import AsJson, report, write_json, write_table
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)


def audit(
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="NAME", help="Only changes of this adapter.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="NAME", help="Only changes by this key, or of it."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="The most changes to show.")
    ] = 100,
    before: Annotated[
        int | None, typer.Option("--before", metavar="ID", help="Only those before this one.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed adapters and keys, and when, the newest first."""
    query = {"adapter": adapter, "key": key, "limit": limit, "before": before}
    params = {name: value for name, value in query.items() if value is not None}
    with Connection(url, api_key) as server:
        body = server.request("GET", "/audit", params=params)
    if as_json:
        write_json(body)
        return
    entries = body["entries"]
    if not entries:
        report("no changes")
        return
    write_table(
        ("id", "at", "key", "from", "", "name", "", "old digest", "new digest", "detail"),
        [
            (
                one["id"],
                one["at"][:19],
                one["key"],
                one["address"],
                one["kind"],
                one["name"],
                one["action"],
                _digest(one["digest_before"]),
                _digest(one["digest_after"]),
                _detail(one["detail"]),
            )
            for one in entries
        ],
    )


def _digest(digest: str | None) -> str | None:
    return None if digest is None else short(digest)


def _detail(detail: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {value[0]} -> {value[1]}" if _is_change(value) else f"{name}: {value}"
        for name, value in detail.items()
    ]


def _is_change(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2
