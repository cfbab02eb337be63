"""`lorry ray serve`: several engines behind one HTTP side, on Ray Serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lorry import logs
from lorry.configuration import load_settings
from lorry.errors import SettingsError


def build_app() -> typer.Typer:
    app = typer.Typer(help="Serve with several replicas on Ray Serve.", no_args_is_help=True)

    # A group, although it has one command.
    @app.callback()
    def group() -> None:
        pass

    app.command("serve")(_serve)
    return app


def _serve(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings in TOML or YAML. [env: LORRY_CONFIG]"),
    ] = None,
    replicas: Annotated[int, typer.Option(metavar="N", help="Engines.", min=1)] = 1,
    cpus: Annotated[
        float, typer.Option(metavar="X", help="CPUs that Ray keeps for each of them.", min=0)
    ] = 1.0,
    gpus: Annotated[
        float, typer.Option(metavar="X", help="GPUs that Ray keeps for each of them.", min=0)
    ] = 0.0,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A running cluster, or `auto` for this machine's; otherwise one starts here.",
        ),
    ] = None,
) -> None:
    """Serve one base with several replicas over HTTP.

    Every other setting is a key of the file or a LORRY_… variable, as for `lorry serve`. It runs
    until SIGTERM or Ctrl-C, and then lets running requests finish.
    """
    settings = load_settings({}, os.environ, config)
    try:
        from lorry.scale.cluster import run
        from lorry.scale.ray import Size
    except ImportError as error:
        raise SettingsError(
            f"Ray Serve is not installed ({error}): pip install 'lorry[ray]'"
        ) from error
    run(settings, Size(replicas, cpus, gpus), address, logs.news(settings.log_format))
