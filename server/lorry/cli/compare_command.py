"""`lorry adapters compare`: compares the answers of two adapters on a running server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lorry.cli.adapter_source import weighed
from lorry.cli.bars import steps
from lorry.cli.divergence import BASE, Comparison, Side
from lorry.cli.divergence import compare as compared
from lorry.cli.output import AsJson, report, write_json, write_line, write_table
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url
from lorry.cli.transfer import LocalFileError
from lorry.errors import SettingsError


def compare(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="An adapter on the server, NAME or NAME:0.7, or `base`."),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="The other; `base` is the base model.")
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", metavar="FILE", help="One prompt a line; .jsonl: objects with `prompt`."
        ),
    ],
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="Most tokens of an answer.")
    ] = 64,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the sampled answers.")
    ] = 0,
    show: Annotated[
        int,
        typer.Option("--show", metavar="N", min=0, help="Number of prompts to show side by side."),
    ] = 3,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far two adapters, and the base, are from each other on your prompts.

    KL per token is estimated from answers sampled at temperature 1. Changed tokens are those of
    a greedy answer that the other side would not have chosen in the same place.
    """
    sides = [_side(first), _side(second)]
    if sides[0].spec == sides[1].spec:
        raise SettingsError(f"{first} and {second} are the same; name two different ones")
    if all(side.spec is not None for side in sides):
        sides.append(_side(BASE))
    texts = read_prompts(prompts)
    with Connection(url, api_key) as server:
        if not as_json:
            report(f"{len(texts)} prompts, answers of at most {tokens} tokens, on {url}")
        with steps("comparing on prompts") as tell:
            result = compared(server, sides, texts, tokens, seed, tell)
    if as_json:
        write_json(
            {
                "drifts": [asdict(divergence) for divergence in result.divergences],
                "answers": [asdict(one) for one in result.shown],
            }
        )
    else:
        _write(result, show)


def _side(text: str) -> Side:
    name, scale = weighed(text)
    if name == BASE:
        if scale is not None:
            raise SettingsError(f"{text}: the base has no scale")
        return Side(BASE, None)
    return Side(text, name if scale is None else {"name": name, "scale": scale})


def read_prompts(file: Path) -> list[str]:
    """A prompt a line, or, in .jsonl, an object with `prompt` or `inputs`, or a text, a line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise LocalFileError(f"{file} cannot be read: {why}") from error
    texts = [line for line in lines if line.strip()]
    if file.suffix == ".jsonl":
        texts = [_prompt_of(file, line) for line in texts]
    if not texts:
        raise LocalFileError(f"{file} has no prompts: write one a line")
    return texts


def _prompt_of(file: Path, line: str) -> str:
    try:
        value: Any = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        value = value.get("prompt", value.get("inputs"))
    if not isinstance(value, str) or not value:
        raise LocalFileError(
            f'{file}: {line[:80]!r} is no prompt; write {{"prompt": "..."}} on each line'
        )
    return value


def _write(result: Comparison, show: int) -> None:
    write_table(
        ("what this says", "judged by", "KL, nats/token", "± std error", "changed tokens"),
        [
            (
                divergence.side,
                divergence.other,
                f"{divergence.kl:.4f}",
                "-" if divergence.error is None else f"{divergence.error:.4f}",
                _share(divergence.changed, divergence.greedy),
            )
            for divergence in result.divergences
        ],
    )
    for one in result.shown[:show]:
        write_line("")
        names = list(one.answers)
        rows = [("prompt", one.prompt), *((name, one.answers[name]) for name in names)]
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            write_line(f"{name:<{width}}  {' '.join(text.split())}")


def _share(changed: int, of: int) -> str:
    return f"{100 * changed / of:.1f} % ({changed} of {of})" if of else "-"
