"""`lorry adapters merge`: several adapters as one, for servers and requests that take only one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lorry.cli.adapter_source import opened, weighed
from lorry.cli.bars import steps
from lorry.cli.output import AsJson, write_json, write_line
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Url
from lorry.errors import SettingsError

METHODS = (
    "linear, magnitude_prune, ties, dare_linear, dare_ties, svd, magnitude_prune_svd, ties_svd, "
    "dare_linear_svd, dare_ties_svd, cat"
)


def merge(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="A:WEIGHT...", help="Local files or names on a server, each with its weight."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to create.")],
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help=f"PEFT's: {METHODS}.")
    ] = "cat",
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="D", help="Share of the numbers that pruning keeps."),
    ] = None,
    majority_sign_method: Annotated[
        str,
        typer.Option(
            "--majority-sign-method",
            metavar="HOW",
            help="How ties elects a sign: total or frequency.",
        ),
    ] = "total",
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", help="Rank of the result of an svd method.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed for the numbers that dare drops.")
    ] = 0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Merge LoRA adapters into one, as PEFT does. `cat` is exactly their sum."""
    wanted = [weighed(text) for text in adapters]
    unweighed = [name for name, weight in wanted if weight is None]
    if unweighed:
        raise SettingsError(f"{unweighed[0]} has no weight; write {unweighed[0]}:0.5")
    from lorry_adapters.lora.merge import Part, Recipe
    from lorry_adapters.lora.merge import merge as merged
    from lorry_adapters.lora.peft_folder import require_free

    require_free(out)
    recipe = Recipe(method, density, majority_sign_method, rank, seed)
    with ExitStack() as stack:
        parts = [
            Part(stack.enter_context(opened(name, url, api_key)), weight or 0.0, name)
            for name, weight in wanted
        ]
        with steps("merging modules") as tell:
            result = merged(parts, recipe, tell)
    result.save(out)
    if as_json:
        write_json(
            {
                "out": str(out),
                "method": method,
                "rank": result.rank,
                "modules": result.modules,
                "parameters": result.parameters,
            }
        )
    else:
        write_line(
            f"{out}: {' + '.join(adapters)} by {method}, rank {result.rank}, "
            f"{result.modules} modules, {result.parameters:,} parameters"
        )
