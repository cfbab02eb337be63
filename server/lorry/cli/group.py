"""A command group. Called without a command, it lists its commands."""

from __future__ import annotations

import typer


def new_group(help: str) -> typer.Typer:
    app = typer.Typer(
        help=help,
        invoke_without_command=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app
