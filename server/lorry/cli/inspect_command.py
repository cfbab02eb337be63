"""`lorry adapters inspect`: measures how much an adapter changes each module of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorry.cli import adapter_source, offline, transfer
from lorry.cli.offline import Home
from lorry.cli.output import AsJson, report, write_json, write_line, write_table
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Url
from lorry.errors import SettingsError
from lorry.settings import Settings

if TYPE_CHECKING:
    from lorry_adapters.tools.norms import ModuleNorm


def inspect(
    adapter: Annotated[
        str,
        typer.Argument(metavar="PATH|NAME", help="Local files, or an adapter on a server."),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Measure against this base's own weights."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", help="Draw layers and modules as a heat map."),
    ] = None,
    home: Home = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much an adapter changes each module, against the base's weights.

    Figures are Frobenius norms. Pairs of matrices are measured by themselves; every other kind
    needs --base.
    """
    if plot is not None and plot.suffix != ".svg":
        raise SettingsError(f"--plot {plot}: pictures are drawn as SVG; name it {plot.stem}.svg")
    from lorry_adapters.lora.peft_folder import PeftFolder
    from lorry_adapters.tools.heatmap import svg
    from lorry_adapters.tools.norms import base_norms, norms

    with adapter_source.opened(adapter, url, api_key) as path, PeftFolder(path) as folder:
        pairs, others = folder.pairs()
        if base is None:
            found = norms(folder)
        else:
            settings = offline.settings_for(base, home)
            source = offline.find(settings).folder
            if others:
                found, others = _changes(path, settings, source)
            else:
                found = norms(folder, base_norms(source, pairs))
    unknown = [one.module for one in found if one.base is None] if base is not None else []
    if plot is not None:
        try:
            plot.write_text(svg(found, f"Where {adapter} acts"), encoding="utf-8")
        except OSError as error:
            raise transfer.LocalFileError(
                f"{plot} cannot be written: {error.strerror or error}"
            ) from error
    if as_json:
        write_json(
            {
                "adapter": adapter,
                "base": base,
                "norm": math.hypot(*(one.norm for one in found)),
                "modules": [{**asdict(one), "relative": one.relative} for one in found],
                "not_measured": others,
            }
        )
        return
    relative = base is not None
    what = "||change|| / ||W||, in percent" if relative else "||s·B·A||"
    write_line(f"{adapter}: {what}, by layer and module")
    write_table(*_table(found, relative))
    if unknown:
        report(f"{base} has no weight of its own for {len(unknown)} modules, as {unknown[0]}")
    if others and relative:
        report(f"{len(others)} modules are changed in a way that has no norm, as {others[0]}")
    elif others:
        report(
            f"{len(others)} tensors are no LoRA pair and not measured, as {others[0]}: "
            "name the base with --base"
        )
    if plot is not None:
        report(f"the picture is in {plot}")


def _changes(path: Path, settings: Settings, base: Path) -> tuple[list[ModuleNorm], list[str]]:
    """Inspect an adapter that is more than pairs of matrices, as the server would apply it."""
    from lorry_adapters.lora.weights import inspect as verify
    from lorry_adapters.lora.weights import load
    from lorry_adapters.tools.changes import changes

    layout = offline.outline(settings).layout
    verify(path, layout, settings.max_lora_rank)
    return changes(load(path, "", layout), layout, base)


def _table(
    found: Sequence[ModuleNorm], relative: bool
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Layers down, modules across."""
    columns = list(dict.fromkeys(one.part for one in found))
    cells = {(one.layer, one.part): _cell(one, relative) for one in found}
    layers: list[int | None] = [*sorted({one.layer for one in found if one.layer is not None})]
    if any(one.layer is None for one in found):
        layers.append(None)
    rows: list[tuple[object, ...]] = [
        ("-" if layer is None else layer, *(cells.get((layer, part), "") for part in columns))
        for layer in layers
    ]
    return ("layer", *columns), rows


def _cell(one: ModuleNorm, relative: bool) -> str:
    if not relative:
        return f"{one.norm:.3g}"
    return "-" if one.relative is None else f"{100 * one.relative:.3g}"
