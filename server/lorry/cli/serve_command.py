"""`lorry serve`: has one flag for every row of the settings table, and no logic of its own."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from lorry.advice import message_of
from lorry.cli.bars import metered
from lorry.configuration import load_settings
from lorry.errors import LorryError, SettingsError
from lorry.model.naming import missing_path
from lorry.model.quick_import import collector_paused, import_libraries
from lorry.option import Kind, Option
from lorry.settings import Settings, options
from lorry_adapters.errors import AdapterError
from lorry_adapters.registry.home import Home

METAVARS = {
    Kind.INT: "N",
    Kind.FLOAT: "X",
    Kind.SIZE: "SIZE",
    Kind.PATH: "PATH",
    Kind.PATHS: "PATHS",
    Kind.HOSTS: "HOSTS",
    Kind.ORIGINS: "ORIGINS",
    Kind.URL_PATH: "PATH",
    Kind.NETWORKS: "NETWORKS",
    Kind.TEXT: "TEXT",
}


def register(app: typer.Typer) -> None:
    app.command("serve")(_command())


def _command() -> Any:
    def serve(**given: Any) -> None:
        """Serve one base model and its adapters over HTTP.

        It runs until SIGTERM or Ctrl-C, and then lets running requests finish. Each flag is
        also a LORRY_… variable and a key of the --config file. Flags win over variables, and
        variables over the file.
        """
        # A container's first process ignores a signal that it has no handler for, and would be
        # killed after the grace. As soon as it serves, uvicorn's handler takes over.
        signal.signal(signal.SIGTERM, _stop)
        config: Path | None = given.pop("config")
        settings = load_settings(given, os.environ, config)
        if settings.log_format != "json":
            # Else `bootstrap` tells the same, once it has made the log JSON.
            _look(settings)
            if sys.stderr.isatty():
                _fetch(settings)
        # The command line starts in a tenth of a second; torch and the server take seconds.
        with collector_paused():
            import_libraries()
            from lorry import bootstrap

        try:
            bootstrap.serve(settings)
        except (LorryError, AdapterError) as error:
            if settings.log_format != "json":
                raise
            logging.getLogger("lorry").error(message_of(error))
            raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from error

    parameters = [_parameter(option) for option in options()]
    parameters.append(
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option(
                    "--config",
                    metavar="FILE",
                    help="Settings in TOML or YAML. [env: LORRY_CONFIG]",
                    show_default=False,
                ),
            ],
        )
    )
    # typer reads a function's signature; this one is written from the table of settings.
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {item.name: item.annotation for item in parameters}
    return serve


def _stop(number: int, frame: FrameType | None) -> None:
    """Exit as a process does that a signal ends."""
    sys.exit(128 + number)


def _look(settings: Settings) -> None:
    """Refuse at once what would be refused after minutes of loading. Raises ModelError,
    HomeUnusable."""
    missing = missing_path(settings.model)
    if missing is not None:
        raise missing
    # Not kept: the server takes it again when it opens the home.
    Home(settings.home).close()


def _fetch(settings: Settings) -> None:
    """The long download of a first start, with a bar; a server on its own says it in lines."""
    from lorry.model import known_bases

    base = known_bases.find(settings.model)
    if base is not None:
        with metered() as (say, meter):
            known_bases.pull(base, settings.home, say, meter)


def _parameter(option: Option) -> inspect.Parameter:
    """None unless given, so that a variable or the file can speak; text, for `Settings` to read."""
    default = "" if option.positional else f"; default: {option.default_text}"
    help = f"{option.help} [env: {option.variable}{default}]"
    if option.positional:
        kind: Any = typer.Argument(metavar=option.flag, help=help, show_default=False)
    else:
        names = option.flag + (f"/{option.negative_flag}" if option.negative_flag else "")
        metavar = "|".join(option.choices) or METAVARS.get(option.kind)
        kind = typer.Option(names, metavar=metavar, help=help, show_default=False)
    value = bool if option.kind is Kind.BOOL else str
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[value | None, kind],
    )
