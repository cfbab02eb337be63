"""`lorry adapters check`: describes an adapter and verifies its files, without a server.

The same verification as at upload, against the base's layout, and a summary of the files:
method, task, rank and size by module, share of the base, and whether it changes anything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorry.advice import advised
from lorry.cli import adapter_source, offline, transfer
from lorry.cli.offline import Home
from lorry.cli.output import AsJson, report, write_facts, write_json, write_line, write_table
from lorry.option import format_size
from lorry_adapters.errors import InvalidAdapter

if TYPE_CHECKING:
    from lorry_adapters.lora.base import BaseLayout
    from lorry_adapters.lora.weights import AdapterFacts
    from lorry_adapters.tools.summary import AdapterSummary, ModulePart


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
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Describe an adapter and verify its files, without a server.

    It lists every problem, not only the first. The exit code is 1 if there is one.
    """
    settings = offline.settings_for(base, home, max_lora_rank)
    if not path.exists():
        raise transfer.LocalFileError(f"{path} does not exist")
    outline = offline.outline(settings)
    problems: list[str] = []
    seen: AdapterSummary | None = None
    facts: AdapterFacts | None = None
    own: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory(prefix="lorry-check-") as scratch:
        folder = Path(scratch)
        try:
            _unpack(path, folder, settings.max_upload)
            seen = _summary(folder)
            facts = _inspect(folder, outline.layout, settings.max_lora_rank)
            own, passed_over = _words(folder)
        except InvalidAdapter as error:
            problems.extend(map(advised, error.problems))
    if seen is not None and seen.acts is False and not problems:
        problems.append(f"it has no effect on the output: {seen.why}")
    body = {"ok": not problems, "base": outline.layout.name, "problems": problems}
    if seen is not None:
        body |= _described(seen, outline.parameters)
    if facts is not None:
        body |= asdict(facts)
        body["base_tokens"] = _tokens_of(outline.layout)
        body["warnings"] = [*map(advised, facts.warnings), *passed_over]
        body["words"] = list(own)
    if as_json:
        write_json(body)
    else:
        _write(path, body, seen, outline.parameters)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        report(f"error: {path} does not fit {outline.layout.name}: {count}")
        raise typer.Exit(1)


def _unpack(path: Path, into: Path, max_bytes: int) -> None:
    from lorry_adapters.registry.archive import Upload, unpack

    if path.is_dir():
        parts = transfer.parts(path)
        config, weights = parts.pop(transfer.CONFIG_FILE), parts.pop(transfer.WEIGHTS_FILE)
        upload = Upload(config=config, weights=weights, words=parts)
        unpack(upload, into, max_bytes=max_bytes)
    else:
        adapter_source.unpack(path, into, max_bytes)


def _summary(folder: Path) -> AdapterSummary | None:
    """Return None if the files are too broken to describe. `inspect` then reports the reason."""
    from lorry_adapters.lora.peft_folder import PeftFolder
    from lorry_adapters.tools.summary import summarize

    try:
        with PeftFolder(folder) as opened:
            return summarize(opened)
    except InvalidAdapter:
        return None


def _inspect(folder: Path, layout: BaseLayout, max_rank: int) -> AdapterFacts:
    from lorry_adapters.lora.weights import inspect

    return inspect(folder, layout, max_rank)


def _words(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the adapter brings beside its weights, and what of that is not used."""
    from lorry_adapters.lora import words

    found, passed_over = words.read(folder)
    return found.brings, passed_over


def _tokens_of(layout: BaseLayout) -> int:
    from lorry_adapters.lora.vocabulary_size import vocabulary_of

    return vocabulary_of(layout)


def _described(seen: AdapterSummary, base_parameters: int) -> dict[str, Any]:
    body = asdict(seen)
    body["modules"] = body.pop("parts")
    ranks = [part.rank for part in seen.parts if part.rank is not None]
    body["rank"] = max(ranks, default=None)
    body["base_parameters"] = base_parameters
    body["share"] = seen.parameters / base_parameters
    return body


def _write(
    path: Path, body: dict[str, Any], seen: AdapterSummary | None, base_parameters: int
) -> None:
    if body["ok"]:
        write_line(f"{path} fits {body['base']}")
    if seen is not None:
        share = 100 * seen.parameters / base_parameters
        acts = {True: "yes", False: "no", None: "not known"}[seen.acts]
        write_facts(
            [
                ("method", ", ".join((seen.method, *seen.kinds))),
                ("task", seen.task),
                ("trained on", seen.base_model),
                ("rank", body["rank"] or None),
                ("parameters", f"{seen.parameters:,}, {share:.3g} % of the base"),
                ("size", f"{format_size(seen.bytes)}, {', '.join(seen.dtypes)}"),
                *_known(body),
                ("brings", ", ".join(body.get("words", ())) or None),
                ("acts", f"{acts}: {seen.why}"),
            ]
        )
        write_table(
            ("module", "kind", "times", "rank", "strength", "parameters", "size"),
            _rows(seen.parts),
        )
    for problem in body["problems"]:
        write_line(f"- {problem}")
    for warning in body.get("warnings", ()):
        write_line(f"warning: {warning}")


def _known(body: dict[str, Any]) -> list[tuple[str, object]]:
    """The adapter's vocabulary, if it is smaller than the base's."""
    if not body.get("tokens"):
        return []
    known, all_ = body["tokens"], body["base_tokens"]
    return [("knows", f"{known:,} of the base's {all_:,} tokens; it never answers the others")]


def _rows(parts: Sequence[ModulePart]) -> list[tuple[object, ...]]:
    """Return a row for each module of a layer, with all layers together. JSON has every module."""
    from lorry_adapters.tools.norms import place

    groups: dict[tuple[str, str], list[ModulePart]] = {}
    for part in parts:
        groups.setdefault((place(part.module)[1], part.kind), []).append(part)
    return [
        (
            module,
            kind,
            len(group),
            _range([part.rank for part in group]),
            _range([part.strength for part in group]),
            f"{sum(part.parameters for part in group):,}",
            format_size(sum(part.bytes for part in group)),
        )
        for (module, kind), group in groups.items()
    ]


def _range(values: Sequence[float | None]) -> str:
    there = sorted({value for value in values if value is not None})
    if not there:
        return "-"
    return f"{there[0]:g}" if len(there) == 1 else f"{there[0]:g} to {there[-1]:g}"
