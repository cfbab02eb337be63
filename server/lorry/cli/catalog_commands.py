"""`lorry catalog`: the catalog that several servers share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lorry.cli.group import new_group
from lorry.cli.offline import Home
from lorry.cli.output import AsJson, write_json, write_line
from lorry.configuration import load_settings
from lorry.errors import SettingsError


def build_app() -> typer.Typer:
    app = new_group("Move a home's adapters and keys to the catalog that servers share.")
    app.command("move")(move)
    return app


def move(
    catalog: Annotated[
        str | None,
        typer.Option("--catalog", metavar="URL", help="As for serve. [env: LORRY_CATALOG]"),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Add the adapters, keys and audit of a stopped server's home to a PostgreSQL database.

    The files of the adapters stay where they are. What was moved is renamed and kept.
    """
    settings = load_settings({"home": home, "catalog": catalog}, os.environ)
    if settings.catalog is None:
        raise SettingsError("name the database: --catalog URL, or LORRY_CATALOG")
    from lorry.access.access_database import FILE
    from lorry.access.access_moving import copy_keys
    from lorry_adapters.registry.home import Home as Folder
    from lorry_adapters.registry.shared import moving

    folder = Folder(settings.home)
    try:
        moved = moving.move(settings.home, settings.catalog)
        keys = copy_keys(settings.home, settings.catalog)
        kept = moving.set_aside(settings.home, FILE)
    finally:
        folder.close()
    if as_json:
        write_json(
            {
                "added": list(moved.added),
                "there": list(moved.there),
                "keys": keys,
                "kept": [str(path) for path in kept],
            }
        )
        return
    write_line(f"{len(moved.added)} adapters and {keys} keys were added to the shared catalog")
    if moved.there:
        write_line(f"{len(moved.there)} adapters were there already")
    write_line(f"the home's own catalog is kept beside it: {len(kept)} files, *.moved-*")
