"""`lorry plan`: how many servers a load needs."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Annotated

import typer

from lorry.adapter_needs import AdapterNeeds
from lorry.bench.served_base import ServedBase
from lorry.capacity import RECORDED, CapacityPlan, Load, ReplicaLimits, StepTimes, Unplannable, plan
from lorry.cli.bars import metered
from lorry.cli.output import AsJson, write_facts, write_json, write_line
from lorry.configuration import load_settings
from lorry.errors import SettingsError
from lorry.option import format_size, parse_size
from lorry_adapters.lora.adapter_size import AdapterSize, PairSize


def register(app: typer.Typer) -> None:
    app.command("plan")(plan_servers)


Milliseconds = Annotated[float | None, typer.Option(metavar="MS", min=0, show_default=False)]


def plan_servers(
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", min=1e-6, help="Requests a second in all.")
    ],
    adapters: Annotated[
        int, typer.Option("--adapters", metavar="N", min=1, help="Adapters that are asked for.")
    ] = 1,
    rank: Annotated[int, typer.Option("--rank", metavar="N", min=1, help="Their rank.")] = 16,
    zipf: Annotated[
        float,
        typer.Option(
            "--zipf",
            metavar="A",
            min=0,
            help="The k-th most popular is asked for in proportion to 1 / k^A; 0: all alike.",
        ),
    ] = 1.0,
    prompt_tokens: Annotated[
        float, typer.Option("--prompt-tokens", metavar="N", min=1, help="Mean of a prompt.")
    ] = 256,
    new_tokens: Annotated[
        float, typer.Option("--new-tokens", metavar="N", min=1, help="Mean of an answer.")
    ] = 128,
    cached: Annotated[
        float,
        typer.Option(
            "--cached",
            metavar="X",
            min=0,
            max=1,
            help="Share of the prompt tokens that the prefix cache has.",
        ),
    ] = 0.0,
    token_ms: Annotated[
        float,
        typer.Option("--token-ms", metavar="MS", min=0.01, help="Most time between two tokens."),
    ] = 50.0,
    max_num_seqs: Annotated[
        int,
        typer.Option("--max-num-seqs", metavar="N", min=1, help="Most running requests of each."),
    ] = 32,
    utilization: Annotated[
        float,
        typer.Option(
            "--utilization", metavar="X", min=0.01, max=1, help="Share of its time that each works."
        ),
    ] = 0.6,
    adapter_memory: Annotated[
        str,
        typer.Option("--adapter-memory", metavar="SIZE", help="For adapters, of each server."),
    ] = "4GiB",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The base, as for serve.", show_default=False
        ),
    ] = None,
    home: Annotated[
        str | None,
        typer.Option("--home", metavar="PATH", help="Where the base is cached, as for serve."),
    ] = None,
    step_ms: Milliseconds = None,
    row_ms: Milliseconds = None,
    adapter_ms: Milliseconds = None,
    prompt_token_ms: Milliseconds = None,
    load_ms: Milliseconds = None,
    as_json: AsJson = False,
) -> None:
    """How many servers, slots and how much memory a load needs. The five times of a step
    (--step-ms and so on) are those of your machine; by default the recorded ones of the default
    base."""
    given = (step_ms, row_ms, adapter_ms, prompt_token_ms, load_ms)
    times = _times(given, model)
    one = adapter_bytes(model, home, rank)
    try:
        memory = parse_size(adapter_memory)
    except ValueError:
        raise SettingsError(
            f"--adapter-memory takes a size as 4GiB, not {adapter_memory!r}"
        ) from None
    held = memory // one
    if held < 1:
        raise Unplannable(
            f"an adapter of rank {rank} takes {format_size(one)}, more than the "
            f"{format_size(memory)} of --adapter-memory"
        )
    load = Load(rate, prompt_tokens, new_tokens, adapters, zipf, cached)
    limits = ReplicaLimits(max_num_seqs, token_ms / 1000, utilization, held)
    found = plan(times, load, limits)
    if as_json:
        write_json({**asdict(found), "adapter_bytes": one, "step_times": asdict(times)})
        return
    write_facts(_facts(found, one))
    write_line(
        f"lorry serve --max-num-seqs {found.rows} --max-loras {found.slots} "
        f"--adapter-memory {adapter_memory}"
    )


def adapter_bytes(model: str | None, home: str | None, rank: int) -> int:
    """Return what a LoRA of all projections takes in memory, at most. Raises ModelError."""
    settings = load_settings({"model": model, "home": home}, os.environ)
    with metered() as (say, meter):
        shapes = ServedBase(settings.model, settings.home, say, meter).shapes
    pairs = tuple(PairSize(rank, inputs, outputs) for outputs, inputs in shapes.values())
    weights = 4 * sum(pair.numbers for pair in pairs)
    return AdapterNeeds().most(AdapterSize(weights=weights, pairs=pairs)).total


def _times(given: tuple[float | None, ...], model: str | None) -> StepTimes:
    names = ("fixed", "row", "adapter", "prompt_token", "load")
    told = {
        name: value / 1000 for name, value in zip(names, given, strict=True) if value is not None
    }
    if model is not None and len(told) < len(names):
        raise Unplannable(
            "the recorded times are the default base's; for another one give all of --step-ms, "
            "--row-ms, --adapter-ms, --prompt-token-ms and --load-ms (docs/planning.md says how "
            "to measure them)"
        )
    return replace(RECORDED, **told)


def _facts(found: CapacityPlan, one: int) -> list[tuple[str, object]]:
    return [
        ("servers", found.replicas),
        ("running requests of each", found.rows),
        ("slots of each", found.slots),
        ("adapters in memory of each", found.held),
        ("one adapter takes", format_size(one)),
        ("one server answers at most", f"{found.most_of_one:.3g} requests/s"),
        ("a token every", f"{found.seconds_per_token * 1000:.1f} ms"),
        ("adapter in memory, requests go where it is", f"{found.hit_share:.0%}"),
        ("adapter in memory, requests go anywhere", f"{found.hit_share_anywhere:.0%}"),
    ]
