"""`lorry models`: which bases are known or cached here, fetching one ahead of serving it, and
making room in one for an adapter's own tokens."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from lorry.cli import offline
from lorry.cli.group import new_group
from lorry.cli.offline import Home
from lorry.cli.output import AsJson, write_json, write_line, write_table
from lorry.configuration import load_settings
from lorry.option import format_size
from lorry.settings import DEFAULT_MODEL


def build_app() -> typer.Typer:
    app = new_group("The base models of this machine.")
    app.command("list")(list_models)
    app.command("pull")(pull)
    app.command("extend")(extend)
    return app


def list_models(home: Home = None, as_json: AsJson = False) -> None:
    """List bases with an alias, and the content of the cache."""
    settings = load_settings({"home": home}, os.environ)
    from lorry.model import known_bases

    rows = known_bases.entries(settings.home)
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
    """Fetch a base, and convert it if needed, so that `lorry serve` starts offline."""
    settings = load_settings({"model": model, "revision": revision, "home": home}, os.environ)
    found = offline.find(settings)
    if as_json:
        write_json({"name": found.name, "folder": str(found.folder), "revision": found.revision})
    else:
        write_line(f"{found.name}: {found.folder}")


def extend(
    adapter: Annotated[
        Path,
        typer.Option(
            "--adapter", metavar="DIR", help="The folder of the adapter that has more tokens."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to create.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The base to extend, as for serve."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR",
            help="The tokenizer that the adapter was trained with, if its own folder has none.",
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write a base with room for the tokens that an adapter was trained with."""
    from lorry.model.quiet import quiet
    from lorry_adapters.errors import ToolError
    from lorry_adapters.lora.tensor_file import TensorFile
    from lorry_adapters.lora.vocabulary_size import size_of
    from lorry_adapters.lora.weights import WEIGHTS_FILE
    from lorry_adapters.tools.extend import extend as extended

    settings = offline.settings_for(model, home)
    layout = offline.outline(settings).layout
    try:
        with TensorFile(adapter / WEIGHTS_FILE) as file:
            tokens = max(size_of(file, layout).values(), default=0)
    except OSError as error:
        raise ToolError(f"{adapter / WEIGHTS_FILE} cannot be read: {error.strerror}") from error
    source = offline.find(settings)
    with warnings.catch_warnings(action="ignore"), quiet(bars=sys.stderr.isatty()):
        result = extended(source.folder, tokenizer or adapter, tokens, out)
    if as_json:
        write_json(
            {
                "out": str(out),
                "base": source.name,
                "tokens": result.tokens,
                "added": result.added,
                "bytes": result.bytes,
            }
        )
    else:
        write_line(
            f"{out}: {source.name} with {result.added} more tokens, {result.tokens} in all, "
            f"{format_size(result.bytes)}"
        )
