"""`lorry adapters check`: would a server take this adapter? Asked of the files, with no server.

The same verification as at upload, against the base's layout. The layout comes from a
model built on torch's meta device: its modules and their shapes, no weights.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorry.cli import transfer
from lorry.cli.output import AsJson, metered, report, write_facts, write_json, write_line
from lorry.option import format_size
from lorry.settings import Settings, load_settings
from lorry_adapters.errors import InvalidAdapter

if TYPE_CHECKING:
    from lorry_adapters.lora.base import BaseLayout


def check(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A PEFT folder, or a zip, tar or tar.gz of one."),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base to check against, as for serve."),
    ] = None,
    max_lora_rank: Annotated[
        str | None, typer.Option("--max-lora-rank", metavar="N", help="As for serve.")
    ] = None,
    home: Annotated[
        str | None, typer.Option("--home", metavar="PATH", help="As for serve.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify an adapter's files with no server.

    Lists every problem, not only the first, and exits 1 where there is one.
    """
    settings = load_settings(
        {"model": base, "max_lora_rank": max_lora_rank, "home": home}, os.environ
    )
    if not path.exists():
        raise transfer.LocalFileError(f"{path} does not exist")
    layout = layout_without_weights(settings)
    from lorry_adapters.lora.weights import inspect
    from lorry_adapters.registry.archive import Upload, unpack

    try:
        with tempfile.TemporaryDirectory(prefix="lorry-check-") as scratch:
            upload = Upload(archive=path)
            if path.is_dir():
                parts = transfer.parts(path)
                upload = Upload(
                    config=parts[transfer.CONFIG_FILE], weights=parts[transfer.WEIGHTS_FILE]
                )
            unpack(upload, Path(scratch), max_bytes=settings.max_upload)
            facts = inspect(Path(scratch), layout, settings.max_lora_rank)
    except InvalidAdapter as error:
        if as_json:
            write_json({"ok": False, "base": layout.name, "problems": list(error.problems)})
        else:
            for problem in error.problems:
                write_line(f"- {problem}")
        count = len(error.problems)
        report(
            f"error: {path} does not fit {layout.name}: {count} problem{'s' if count > 1 else ''}"
        )
        raise typer.Exit(1) from None
    if as_json:
        write_json({"ok": True, "base": layout.name, **asdict(facts)})
        return
    write_line(f"{path} fits {layout.name}")
    write_facts(
        [
            (key.replace("_", " "), format_size(value) if key == "bytes" else value)
            for key, value in asdict(facts).items()
        ]
    )


def layout_without_weights(settings: Settings) -> BaseLayout:
    """The layout of `settings.model`; nothing of its weights is read. Raises ModelError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lorry.errors import ModelError
    from lorry.model import source
    from lorry.model.layout import layout_of

    with metered() as (say, meter):
        found = source.fetch(
            settings.model,
            settings.home,
            revision=settings.revision,
            token=settings.hf_token,
            say=say,
            meter=meter,
        )
    try:
        config = AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"the config of {found.given} cannot be read: {error}") from error
    return layout_of(model, settings.served_model_name or found.name)
