"""`lorry bench`: a load for a server, ours or another's, and a table of what came back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lorry.bench import machine, plot, random_adapters, report
from lorry.bench.campaign import APIS, Campaign
from lorry.bench.connection import Address
from lorry.bench.preset import Stage
from lorry.bench.served_base import ServedBase
from lorry.bench.targets import Sampling
from lorry.bench.workload import WorkloadRow
from lorry.cli.bars import campaign as show
from lorry.cli.bars import metered
from lorry.cli.bench_arguments import names_of, popularity_of, preset_of, span_of
from lorry.cli.output import report as tell
from lorry.cli.output import report_error, write_line, write_table
from lorry.cli.server_connection import ApiKey
from lorry.configuration import load_settings
from lorry.errors import SettingsError

BUSY_CLIENT = 0.15
"""Share of a core from which on the generator's own work is worth a word."""

BUSY_MACHINE = 0.7
"""Load average from which on a measurement had company."""


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="LORRY_URL",
            metavar="URL",
            help="The server to measure; without one, `bench` starts one.",
            show_default=False,
        ),
    ] = None,
    api: Annotated[
        str, typer.Option("--api", metavar="|".join(APIS), help="The API that it speaks.")
    ] = "lorry",
    api_key: ApiKey = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The base, as for serve: the server that is started serves it, and the adapters "
            "are made for it.",
            show_default=False,
        ),
    ] = None,
    home: Annotated[
        str | None,
        typer.Option("--home", metavar="PATH", help="Where the base is cached, as for serve."),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            help="The base's name on an OpenAI server; by default its first model.",
        ),
    ] = None,
    preset_name: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="W|S",
            help="A workload of the benchmarks page: W, or S for shared prompts.",
        ),
    ] = None,
    zipf: Annotated[
        bool,
        typer.Option("--zipf", help="With --preset: also 64 adapters, of which 16 fit at once."),
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", "-c", metavar="N", min=1, help="Requests in flight. [default: 8]"
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="X",
            min=1e-6,
            help="Send this many requests a second instead, whatever is in flight.",
        ),
    ] = None,
    cv: Annotated[
        float,
        typer.Option(
            "--cv",
            metavar="X",
            min=0,
            max=100,
            help="With --rate: variation of the gaps. 1 is Poisson; more makes bursts.",
        ),
    ] = 1.0,
    requests: Annotated[
        int, typer.Option("--requests", "-n", metavar="N", min=1, help="Requests in each repeat.")
    ] = 32,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", metavar="N", min=1, help="Repeats; the figures are their medians."
        ),
    ] = 3,
    warm_up: Annotated[
        int | None,
        typer.Option(
            "--warm-up",
            metavar="N",
            min=0,
            help="Requests before the clock starts. [default: as many as run]",
        ),
    ] = None,
    adapters: Annotated[
        int,
        typer.Option(
            "--adapters", "-a", metavar="N", min=0, help="Number of adapters; 0 asks the base."
        ),
    ] = 0,
    popular: Annotated[
        str,
        typer.Option(
            "--popularity",
            metavar="WHICH",
            help="identical, distinct, uniform, zipf:A, or power:A (S-LoRA's).",
        ),
    ] = "distinct",
    random_scales: Annotated[
        bool, typer.Option("--random-scales", help="Give each request a random scale.")
    ] = False,
    rank: Annotated[
        int,
        typer.Option("--rank", metavar="N", min=1, max=1024, help="Rank of the adapters it makes."),
    ] = 16,
    adapter_names: Annotated[
        str | None,
        typer.Option(
            "--adapter-names",
            metavar="A,B,...",
            help="Use adapters that the server has instead of making some. llama.cpp: numbers.",
        ),
    ] = None,
    write_adapters: Annotated[
        Path | None,
        typer.Option(
            "--write-adapters",
            metavar="DIR",
            help="Only write the adapters there, for another server (--adapters; 8 with a preset).",
        ),
    ] = None,
    prompt_words: Annotated[
        str, typer.Option("--prompt-words", metavar="N|N-M", help="Length of the prompts.")
    ] = "64",
    system_words: Annotated[
        int,
        typer.Option(
            "--system-words",
            metavar="N",
            min=0,
            help="Words before every prompt, the same for all requests of an adapter.",
        ),
    ] = 0,
    turns: Annotated[
        int,
        typer.Option(
            "--turns",
            metavar="N",
            min=1,
            help="Conversations of that many requests, each with all that was said before.",
        ),
    ] = 1,
    new_tokens: Annotated[
        str, typer.Option("--new-tokens", metavar="N|N-M", help="Length of the answers.")
    ] = "64",
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", metavar="X", min=0, help="Sampling temperature; 0 is greedy."
        ),
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="X", min=0.001, max=1, help="With --temperature.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of everything random.")
    ] = 0,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="X", min=0.001, help="Seconds that one request may take."
        ),
    ] = 600.0,
    check_answers: Annotated[
        bool,
        typer.Option(
            "--check-answers", help="Repeat every request alone; exit 1 if an answer differs."
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures and the machine's description there."
        ),
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot there, as SVG.")
    ] = None,
    serve_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- FLAGS...]",
            help="Flags of `lorry serve` for the server that is started.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure a server under load.

    Requests are streamed, greedy unless --temperature is given, and run to their full length.
    The exit code is 1 if no request succeeded or an answer was wrong.
    """
    if api not in APIS:
        raise SettingsError(f"--api {api}: give one of {', '.join(APIS)}")
    if url is not None and serve_flags:
        raise SettingsError(f"{serve_flags[0]} is for a server of our own; leave out --url")
    if url is None and api != "lorry":
        raise SettingsError(f"--api {api} needs the --url of a server that speaks it")
    if api == "openai" and random_scales:
        raise SettingsError("--random-scales: OpenAI's API has no scales")
    if top_p < 1 and temperature == 0:
        raise SettingsError("--top-p is for sampled answers; give --temperature too")
    if url is not None:
        Address.of(url)
    if preset_name is not None:
        stages = preset_of(preset_name, zipf, own_server=url is None)
    else:
        load = (concurrency or 8, None) if rate is None else (None, rate)
        if rate is not None and concurrency is not None:
            raise SettingsError("--concurrency and --rate are two kinds of load; give one")
        if rate is not None and turns > 1:
            raise SettingsError("--turns: a turn waits for the one before it; give --concurrency")
        what = "base" if not adapters else f"{adapters} adapters, {popular}"
        what += f", {system_words} words shared" if system_words else ""
        what += f", {turns} turns" if turns > 1 else ""
        row = WorkloadRow(
            what,
            requests=requests,
            concurrency=load[0],
            rate=load[1],
            cv=cv,
            adapters=adapters,
            popularity=popularity_of(popular),
            random_scales=random_scales,
            prompt_words=span_of(prompt_words, "--prompt-words"),
            new_tokens=span_of(new_tokens, "--new-tokens"),
            system_words=system_words,
            turns=turns,
            warm_up=(concurrency or 8) if warm_up is None else warm_up,
        )
        drawn = "" if temperature == 0 else f", temperature {temperature:g}, top-p {top_p:g}"
        stages = (Stage((replace(row, name=f"{what}, {row.load}{drawn}"),)),)
    names = None if adapter_names is None else names_of(adapter_names, api)
    most = max(row.adapters for stage in stages for row in stage.rows)
    settings = load_settings({"model": model, "home": home}, os.environ)
    # Fetched here: a download has bars of its own, and two cannot share a terminal.
    with metered() as (say, meter):
        base = ServedBase(settings.model, settings.home, say, meter)
        if write_adapters is not None:
            for index in range(most):
                folder = write_adapters / random_adapters.name_of(index, rank)
                base.write_adapter(folder, index, rank)
                write_line(str(folder))
            return
        if url is None or (api == "lorry" and names is None and most):
            base.fetch()
    campaign = Campaign(
        base=base,
        url=url,
        serve_flags=serve_flags or [],
        api=api,
        api_key=api_key,
        model_name=model_name,
        adapter_names=names,
        rank=rank,
        repeats=repeats,
        seed=seed,
        timeout=timeout,
        check_answers=check_answers,
        sampling=Sampling(temperature, top_p),
    )
    where = machine.look()
    outcome = campaign.run(stages, show)
    made = report.Report(
        where, outcome.server, outcome.results, outcome.checked, outcome.differences
    )
    write_line(where.one_line)
    write_line(f"{made.server_line}; {report.LEGEND}")
    write_table(report.COLUMNS, made.table())
    if json_file is not None:
        report.write_json(json_file, made.as_json())
    if plot_file is not None:
        report.write(plot_file, plot.svg(made, f"lorry bench, {api}, {where.when}"))
    _conclude(made)


def _conclude(made: report.Report) -> None:
    """Report important remarks on the table. Raises typer.Exit if the run was not a success."""
    failed = False
    for result in made.results:
        figures = result.figures
        for problem, count in sorted(figures.problems.items(), key=lambda item: -item[1])[:5]:
            tell(f"{result.row.name}: {count} x {problem}")
        if figures.errors == figures.requests:
            report_error(f"{result.row.name}: no request succeeded")
            failed = True
        if figures.first_token_by_turn:
            times = ", ".join(f"{1000 * time:.0f}" for time in figures.first_token_by_turn)
            tell(f"{result.row.name}: first token by turn, ms: {times}")
        if figures.client_share > BUSY_CLIENT:
            tell(
                f"{result.row.name}: the load generator itself took {figures.client_share:.0%} of "
                "a core; the server may do better than this"
            )
    if made.machine.busy is not None and made.machine.busy > BUSY_MACHINE:
        tell(f"the load average was {made.machine.busy} at the start: others took part")
    if made.checked is not None:
        for difference in made.differences[:10]:
            tell(f"differs: {difference}")
        unanswered = sum(one.alone.problem is not None for one in made.differences)
        different = len(made.differences) - unanswered
        if unanswered:
            report_error(f"{unanswered} of {made.checked} requests failed when asked alone")
        if different:
            report_error(f"{different} of {made.checked} answers differ from the same asked alone")
        if made.differences:
            failed = True
        else:
            tell(f"{made.checked} answers are the same when asked alone")
    if failed:
        raise typer.Exit(1)
