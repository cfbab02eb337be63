"""`lorry adapters bake`: a base with an adapter in its weights, for servers that know none."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from lorry.cli import adapter_source, offline
from lorry.cli.offline import Home
from lorry.cli.output import AsJson, write_json, write_line
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Url
from lorry.errors import ModelError, SettingsError
from lorry.option import format_size

DTYPES = ("float32", "bfloat16")


def bake(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="A[:SCALE]", help="Local files or a name on a server; scale 1 is as trained."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to create.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base to bake into, as for serve."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="TYPE", help="Type of the weights: float32 or bfloat16."),
    ] = "bfloat16",
    home: Home = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Write a whole model with the adapter merged into the base's weights."""
    if dtype not in DTYPES:
        raise SettingsError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    name, scale = adapter_source.weighed(adapter)
    from lorry.model import first_qwen
    from lorry.model.quiet import quiet
    from lorry_adapters.tools.bake import bake as baked

    with adapter_source.opened(name, url, api_key) as folder:
        source = offline.find(offline.settings_for(base, home))
        if first_qwen.is_original(source.folder):
            raise ModelError(
                f"{source.given} is a first Qwen, whose files only its own code can load; bake "
                "into a model that transformers knows, or serve it with the adapter beside it"
            )
        # The libraries' own bars: loading, merging and writing are theirs.
        bars = sys.stderr.isatty()
        # PEFT remarks that the base is called otherwise than where the adapter was trained.
        with warnings.catch_warnings(action="ignore"), quiet(bars=bars):
            strength = 1.0 if scale is None else scale
            result = baked(source.folder, folder, strength, dtype, out, bars=bars)
    if as_json:
        write_json(
            {
                "out": str(out),
                "base": source.name,
                "dtype": dtype,
                "parameters": result.parameters,
                "bytes": result.bytes,
                "modules": result.modules,
            }
        )
    else:
        write_line(
            f"{out}: {source.name} with {adapter} in {result.modules} modules, "
            f"{format_size(result.bytes)} in {dtype}"
        )
