"""`lorry adapters`: what an adapter's names mean, and which of its versions are kept."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorry.cli.adapter_source import path_of
from lorry.cli.completion import adapter_names
from lorry.cli.output import AsJson, write_json, write_line
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url
from lorry.errors import SettingsError

Named = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The adapter's name, or an alias.", autocompletion=adapter_names
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("promote")(promote)
    app.command("split")(split)
    app.command("withdraw")(withdraw)
    app.command("alias")(alias)
    app.command("unalias")(unalias)
    app.command("keep")(keep)


def promote(
    name: Named,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="The version it means now.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a version current, back or forward, and end a trial."""
    _change(name, {"version": version}, url, api_key, as_json)


def split(
    name: Named,
    shares: Annotated[
        list[str],
        typer.Argument(metavar="VERSION=WEIGHT...", help="For example: 7=90 8=10"),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Begin a trial: requests for NAME are split between versions.

    Requests of one user, or with one seed, get one version. The version with the largest weight is
    current, and stays so when the trial is withdrawn.
    """
    _change(name, {"split": dict(map(_share, shares))}, url, api_key, as_json)


def withdraw(
    name: Named, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """End a trial: all requests for NAME get its current version."""
    _change(name, {"split": {}}, url, api_key, as_json)


def alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, new or to be moved.")],
    target: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="What it means.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Set an alias for a version, such as legal-prod or legal@prod for legal@7."""
    adapter, _, version = target.rpartition("@")
    if not adapter or not version.isdecimal():
        raise SettingsError(f"{target}: write NAME@VERSION, such as legal@7")
    _change(adapter, {"aliases": {name: int(version)}}, url, api_key, as_json)


def unalias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Remove an alias. Its adapter stays."""
    with Connection(url, api_key) as server:
        record = server.request("GET", path_of(name))
        if record.get("alias") is None:
            raise SettingsError(f"{name} is no alias but an adapter")
        body = {"aliases": {name: None}}
        record = server.request("PATCH", path_of(record["name"]), json=body)
    _say(record, as_json)


def keep(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.")],
    versions: Annotated[
        str | None,
        typer.Option("--versions", metavar="N", help="The newest ones; 0 keeps all, or default."),
    ] = None,
    days: Annotated[
        str | None,
        typer.Option("--days", metavar="DAYS", help="0 keeps them for ever, or default."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Limit the versions that are kept, for trainers that push often.

    Versions that are current, in use, in a trial or behind an alias stay.
    """
    if versions is None and days is None:
        raise SettingsError("give --versions, --days or both")
    change: dict[str, Any] = {}
    if versions is not None:
        change["keep_versions"] = _number(versions, int, "--versions")
    if days is not None:
        change["keep_days"] = _number(days, float, "--days")
    _change(name, change, url, api_key, as_json)


def _share(text: str) -> tuple[str, int]:
    version, _, weight = text.partition("=")
    if not (version.isdecimal() and weight.isdecimal()):
        raise SettingsError(f"{text}: write VERSION=WEIGHT with whole numbers, such as 7=90")
    return version, int(weight)


def _number(text: str, kind: type[int] | type[float], option: str) -> int | float | str:
    if text == "default":
        return text
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{option} must be a number or default, not {text}") from None


def _change(
    name: str, change: dict[str, Any], url: str, api_key: str | None, as_json: bool
) -> None:
    with Connection(url, api_key) as server:
        record = server.request("PATCH", path_of(name), json=change)
    _say(record, as_json)


def _say(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(record)
        return
    named = {record.get("alias") or record["name"]: record["split"] or record["version"]}
    named = record["aliases"] | named
    meanings = ", ".join(f"{name} is {_meaning(one)}" for name, one in sorted(named.items()))
    write_line(f"{record['name']}: {meanings}{_kept(record)}")


def _meaning(meaning: int | dict[str, int]) -> str:
    if isinstance(meaning, int):
        return f"version {meaning}"
    total = sum(meaning.values())
    return " + ".join(
        f"{100 * weight / total:g} % version {one}" for one, weight in meaning.items()
    )


def _kept(record: dict[str, Any]) -> str:
    told = ""
    if record["keep_versions"]:
        told += f"; the newest {record['keep_versions']} versions are kept"
    if record["keep_days"]:
        told += f"; versions are kept for {record['keep_days']:g} days"
    return told
