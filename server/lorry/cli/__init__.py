"""The command line: `lorry serve`, `chat`, `ask`, `ps`, `adapters`, `models`, `keys`,
`catalog`, `ray`, `audit`, `bench`, `plan`, `doctor`, `train`.

Every command ends in one of three ways: 0, and what was asked for on standard output;
1, and one line on standard error that says what is wrong and what to do; 2, the same for
a command that was typed wrongly. A mistake of the user's is never a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from lorry import __version__
from lorry.advice import advised, message_of
from lorry.cli import (
    adapter_commands,
    audit_command,
    bench_command,
    catalog_commands,
    chat_commands,
    doctor_command,
    key_commands,
    model_commands,
    plan_command,
    ps_command,
    ray_command,
    serve_command,
    train_command,
)
from lorry.cli.output import in_a_line, report_error
from lorry.errors import LorryError, SettingsError
from lorry.logs import hush_libraries
from lorry_adapters.errors import AdapterError, InvalidAdapter


def build_app() -> typer.Typer:
    """The whole tree of commands."""
    app = typer.Typer(
        name="lorry",
        help="Serve one quantized base model and any number of LoRA adapters in one batch.",
        no_args_is_help=False,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        context: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    ) -> None:
        if version:
            typer.echo(f"lorry {__version__}")
        elif context.invoked_subcommand is None:
            typer.echo(context.get_help())

    serve_command.register(app)
    chat_commands.register(app)
    ps_command.register(app)
    app.add_typer(adapter_commands.build_app(), name="adapters")
    app.add_typer(model_commands.build_app(), name="models")
    app.add_typer(key_commands.build_app(), name="keys")
    app.add_typer(catalog_commands.build_app(), name="catalog")
    app.add_typer(ray_command.build_app(), name="ray")
    audit_command.register(app)
    bench_command.register(app)
    plan_command.register(app)
    doctor_command.register(app)
    train_command.register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. `arguments` default to the process's own."""
    hush_libraries()
    command = get_command(build_app())
    try:
        result = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="lorry",
            standalone_mode=False,
        )
    except SettingsError as error:
        report_error(error.message)
        return 2
    except InvalidAdapter as error:
        report_error(in_a_line([advised(problem) for problem in error.problems]))
        return 1
    except (LorryError, AdapterError) as error:
        report_error(message_of(error))
        return 1
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", None) or "lorry"
        report_error(f"{error.format_message()} ({path} --help)")
        return error.exit_code
    except typer.Abort:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`lorry adapters list | head -1`); Python would
        # complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0
