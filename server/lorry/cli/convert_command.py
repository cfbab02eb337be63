"""`lorry adapters convert`: converts an adapter to a PEFT folder that PEFT loads completely."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lorry.cli.adapter_source import opened
from lorry.cli.output import AsJson, write_json, write_line
from lorry.cli.server_connection import DEFAULT_URL
from lorry.cli.transfer import LocalFileError
from lorry.errors import SettingsError


def convert(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A PEFT folder, or a zip, tar or tar.gz of one; or MLX-LM's folder.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to create.")],
    initial: Annotated[
        Path | None,
        typer.Option(
            "--initial",
            metavar="DIR",
            help="The adapter before its first training step; with it, PiSSA, OLoRA, CorDA and "
            "LoRA-GA become plain LoRA.",
        ),
    ] = None,
    task: Annotated[
        int | None,
        typer.Option(
            "--task",
            metavar="N",
            help="Extract one task of a multitask prompt or of Poly, counted from 0.",
        ),
    ] = None,
    experts_grouped: Annotated[
        bool,
        typer.Option(
            "--experts-grouped",
            help="For experts trained by Unsloth before 2026.9.6: reorder the columns of lora_B "
            "as PEFT has them.",
        ),
    ] = False,
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only",
            help="Extract the text model's part of an adapter for a model with a vision or audio "
            "part, under the text model's own names.",
        ),
    ] = False,
    in_wrapper: Annotated[
        bool,
        typer.Option(
            "--in-wrapper",
            help="The reverse of --text-only: use the names that a text model's modules have "
            "within a model with other parts.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter to PEFT's own layout: from old keys, a trainer's paths, PiSSA or MLX-LM's,
    or from one of many tasks."""
    from lorry_adapters.lora.peft_folder import require_free
    from lorry_adapters.lora.spelling import Spelling
    from lorry_adapters.tools.convert import convert as converted
    from lorry_adapters.tools.mlx import WEIGHTS_FILE as MLX_FILE

    for file in (path, initial):
        if file is not None and not file.exists():
            raise LocalFileError(f"{file} does not exist")
    if text_only and in_wrapper:
        raise SettingsError("--text-only and --in-wrapper exclude each other")
    names = Spelling.TEXT if text_only else Spelling.WRAPPER if in_wrapper else None
    require_free(out)
    with ExitStack() as stack:
        of_mlx = (path / MLX_FILE).is_file()
        folder = path if of_mlx else stack.enter_context(opened(str(path), DEFAULT_URL, None))
        before = None
        if initial is not None:
            before = stack.enter_context(opened(str(initial), DEFAULT_URL, None))
        result = converted(folder, before, task, experts_grouped=experts_grouped, names=names)
    result.save(out)
    if as_json:
        write_json({"out": str(out), "changes": list(result.changes)})
        return
    for change in result.changes or ["nothing had to change"]:
        write_line(f"- {change}")
    write_line(f"{out}: {len(result.tensors)} tensors")
