"""`lorry models`: which bases are known or cached here, and fetching one ahead of serving it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lorry.cli.group import new_group
from lorry.cli.output import AsJson, metered, write_json, write_line, write_table
from lorry.option import format_size
from lorry.settings import DEFAULT_MODEL, load_settings

Home = Annotated[str | None, typer.Option("--home", metavar="PATH", help="As in `lorry serve`.")]


def build_app() -> typer.Typer:
    app = new_group("The base models of this machine.")
    app.command("list")(list_models)
    app.command("pull")(pull)
    return app


def list_models(home: Home = None, as_json: AsJson = False) -> None:
    """Bases with an alias, and what the cache holds."""
    settings = load_settings({"home": home}, os.environ)
    from lorry.model import catalogue

    rows = catalogue.entries(settings.home)
    if as_json:
        write_json(
            [
                {
                    "name": row.name,
                    "description": row.description,
                    "cached": row.folder is not None,
                    "folder": None if row.folder is None else str(row.folder),
                    "bytes": row.bytes,
                    "default": row.name == DEFAULT_MODEL,
                }
                for row in rows
            ]
        )
        return
    write_table(
        ("name", "cached", "size", "description"),
        [
            (
                row.name + (" (default)" if row.name == DEFAULT_MODEL else ""),
                row.folder is not None,
                format_size(row.bytes) if row.folder else "-",
                row.description,
            )
            for row in rows
        ],
    )


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="An alias, a hub id, or a GGUF file.", show_default=True
        ),
    ] = DEFAULT_MODEL,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="TEXT", help="Branch, tag or commit of a hub model."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a base, and convert it where needed, so that `lorry serve` starts offline."""
    settings = load_settings({"model": model, "revision": revision, "home": home}, os.environ)
    from lorry.model import source

    with metered() as (say, meter):
        found = source.fetch(
            settings.model,
            settings.home,
            revision=settings.revision,
            token=settings.hf_token,
            say=say,
            meter=meter,
        )
    if as_json:
        write_json({"name": found.name, "folder": str(found.folder), "revision": found.revision})
    else:
        write_line(f"{found.name}: {found.folder}")
