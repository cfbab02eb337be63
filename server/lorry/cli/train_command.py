"""`lorry train`: an adapter from examples, on the base that is served."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lorry.cli import offline, transfer
from lorry.cli.offline import Home
from lorry.cli.output import AsJson, report, write_facts, write_json, write_line
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url
from lorry.errors import SettingsError

if TYPE_CHECKING:
    from lorry.training import job, monitor


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Examples: JSON Lines, or a text file."),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="The adapter's name."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where it is written; ./NAME by default."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The base, as for serve.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Report what the examples are, and train nothing.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Upload it to the server at --url when it is done.")
    ] = False,
    disabled: Annotated[
        bool, typer.Option("--disabled", help="With --push: register it disabled.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")
    ] = False,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            metavar="FILE|SHARE",
            help="Examples that are not learned, to see whether others profit: 0.1, or a file.",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="NAME", help="quick, general, complex or large-data."),
    ] = "general",
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="KIND", help="lora, rslora, dora, ia3 or prompt."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", metavar="KIND", help="The base: none, int8, or nf4 (QLoRA)."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", metavar="R")] = None,
    alpha: Annotated[
        int | None,
        typer.Option("--alpha", metavar="A", help="Its strength is alpha / rank; 2 x rank."),
    ] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", metavar="P")] = None,
    targets: Annotated[
        str | None,
        typer.Option("--targets", metavar="A,B", help="Module names; all linears by default."),
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", metavar="N")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Instead of epochs.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", metavar="X")] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", metavar="KIND", help="cosine, linear or constant."),
    ] = None,
    warm_up: Annotated[
        float | None, typer.Option("--warm-up", metavar="SHARE", help="Of the steps; 0.03.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Sequences of a step.")
    ] = None,
    accumulation: Annotated[
        int | None,
        typer.Option("--accumulation", metavar="N", help="Parts of a batch, for less memory."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", metavar="T", help="Longer sequences are left out; 2048."),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Recompute activations: less memory, more time."),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option("--patience", metavar="N", help="Stop after N validations without a gain."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--form",
            metavar="FORM",
            help="Prompts with completions are written as a chat, raw, or mixed (both).",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N")] = None,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N")] = None,
    home: Home = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter from examples.

    The same data, settings, versions, threads and machine give the same bytes.
    """
    if not check and name is None and out is None:
        raise SettingsError("--name says what the adapter is called")
    folder = out or Path(name or "")
    if not check and not resume and (folder / "adapter_config.json").exists():
        raise SettingsError(f"{folder} has an adapter already; choose another --out, or remove it")
    from lorry.training.training_recipe import Preset, Schedule, TrainingMethod

    given: dict[str, Any] = {
        "method": _one_of(TrainingMethod, "--method", method),
        "schedule": _one_of(Schedule, "--schedule", schedule),
        "quantize": quantize,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "targets": None if targets is None else tuple(targets.split(",")),
        "epochs": epochs,
        "steps": steps,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "batch": batch,
        "accumulation": accumulation,
        "max_length": max_length,
        "checkpointing": checkpointing or None,
        "patience": patience,
        "form": form,
        "seed": seed,
    }
    chosen = _one_of(Preset, "--preset", preset)
    source = offline.find(offline.settings_for(base, home))
    import torch

    from lorry.model.quiet import quiet
    from lorry.training import job

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    with quiet():
        prepared = job.prepare(
            source,
            data,
            {key: value for key, value in given.items() if value is not None},
            preset=chosen or Preset.GENERAL,
            validation=_validation(validation),
        )
    if check:
        _say_survey(prepared, as_json)
        return
    for warning in prepared.survey.warnings:
        report(f"warning: {warning}")
    folder.mkdir(parents=True, exist_ok=True)
    with _display() as tell:
        trained = job.run(prepared, folder, tell, say=report, resume=resume)
    _say_trained(trained, as_json)
    if push:
        _push(trained, name or folder.name, url, api_key, disabled=disabled)


def _one_of(kind: Any, flag: str, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(kind)
        raise SettingsError(f"{flag} must be one of {names}, not {value!r}") from None


def _validation(given: str | None) -> Path | float | None:
    if given is None:
        return None
    try:
        return float(given)
    except ValueError:
        return Path(given)


def _say_survey(prepared: job.PreparedRun, as_json: bool) -> None:
    from lorry.training.data_survey import marked

    survey = prepared.survey
    first = marked(prepared.training[0], prepared.tokenizer)
    if as_json:
        recipe = prepared.recipe.as_json()
        write_json({**survey.as_json(), "recipe": recipe, "first": first})
        return
    write_facts(
        [
            ("examples", survey.examples),
            ("sequences", survey.sequences),
            ("tokens", f"{survey.tokens}, of which {survey.learned_tokens} are learned"),
            ("lengths", f"{survey.shortest} to {survey.longest}, median {survey.median:g}"),
            ("recipe", ", ".join(f"{k} {v}" for k, v in prepared.recipe.as_json().items())),
        ]
    )
    for warning in survey.warnings:
        write_line(f"warning: {warning}")
    write_line("\nThe first sequence; what is learned stands between » and «:\n")
    write_line(first)


def _say_trained(trained: job.Trained, as_json: bool) -> None:
    made = trained.record
    if as_json:
        write_json({"folder": str(trained.folder), **made})
        return
    parameters = made["parameters"]
    losses = [one["loss"] for one in made["curve"] if one["loss"] is not None]
    validations = [
        one["validation_loss"] for one in made["curve"] if one["validation_loss"] is not None
    ]
    write_line(
        f"{trained.folder}: {made['steps']} steps in {made['seconds']:.0f} s, "
        f"loss {losses[0]:.3f} to {losses[-1]:.3f}"
        + (f", validation {validations[0]:.3f} to {validations[-1]:.3f}" if validations else "")
        + f"; {parameters['trained']:,} parameters, {100 * parameters['share']:.2f} % of the base"
    )
    if found := made["evaluation"]:
        write_line(
            f"on the validation's examples the base's loss is {found['base_loss']:.3f} and the "
            f"adapter's {found['loss']:.3f}; {found['drift']:.3f} nats a token from the base; "
            f"{100 * found['ends']:.0f} % of the answers end where they should"
        )
        for one in found["answers"]:
            write_facts([("prompt", one["prompt"]), ("base", one["base"]), ("now", one["adapter"])])


def _push(trained: job.Trained, name: str, url: str, key: str | None, *, disabled: bool) -> None:
    fields = {"name": name, "replace": "true"}
    if disabled:
        fields["enabled"] = "false"
    with Connection(url, key) as server:
        answer = transfer.upload(server, "/adapters", trained.folder, fields)
    write_line(f"{answer['name']}@{answer['version']} is on {url}")


@contextmanager
def _display() -> Iterator[monitor.Tell]:
    """A bar in a terminal; elsewhere a line for each validation, and for each tenth of the run."""
    if not sys.stderr.isatty():
        last = -1

        def line(progress: monitor.TrainingProgress) -> None:
            nonlocal last
            tenth = 10 * progress.step // progress.steps
            if progress.validation_loss is not None or tenth != last:
                last = tenth
                report(_told(progress))

        yield line
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")

        def bar(progress: monitor.TrainingProgress) -> None:
            bars.update(
                task,
                completed=progress.step,
                total=progress.steps,
                description=_told(progress).partition(": ")[2],
            )

        yield bar


def _told(progress: monitor.TrainingProgress) -> str:
    step = f"step {progress.step} of {progress.steps}"
    if progress.validation_loss is not None:
        return f"{step}: validation loss {progress.validation_loss:.3f}"
    return (
        f"{step}: loss {progress.loss:.3f}, {progress.tokens_per_second:.0f} tokens/s, "
        f"{progress.seconds_left:.0f} s left"
    )
