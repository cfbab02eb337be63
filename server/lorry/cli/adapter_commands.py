"""`lorry adapters`: a running server's adapters and how to change them, and tools around files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorry.cli import transfer
from lorry.cli.adapter_source import path_of
from lorry.cli.bake_command import bake
from lorry.cli.check_command import check
from lorry.cli.compare_command import compare
from lorry.cli.completion import adapter_names
from lorry.cli.convert_command import convert
from lorry.cli.group import new_group
from lorry.cli.inspect_command import inspect
from lorry.cli.merge_command import merge
from lorry.cli.output import AsJson, report, write_facts, write_json, write_line, write_table
from lorry.cli.recover_command import recover
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url
from lorry.cli.version_commands import register
from lorry.option import format_size

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The adapter's name.", autocompletion=adapter_names),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="One or more names.", autocompletion=adapter_names),
]


def build_app() -> typer.Typer:
    app = new_group("List, push and change a server's adapters; check, merge and convert files.")
    app.command("list")(list_adapters)
    app.command("show")(show)
    app.command("push")(push)
    app.command("pull")(pull)
    app.command("enable")(enable)
    app.command("disable")(disable)
    # A scale may be negative, and `-0.5` is no flag.
    app.command("scale", context_settings={"ignore_unknown_options": True})(scale)
    app.command("pin")(pin)
    app.command("unpin")(unpin)
    register(app)
    app.command("rm")(remove)
    app.command("recover")(recover)
    app.command("check")(check)
    app.command("inspect")(inspect)
    app.command("compare")(compare)
    app.command("merge")(merge)
    app.command("bake")(bake)
    app.command("convert")(convert)
    return app


def list_adapters(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List every adapter, and where its weights are."""
    with Connection(url, api_key) as server:
        body = server.request("GET", "/adapters")
    if as_json:
        write_json(body)
        return
    records = body["adapters"]
    if not records:
        report(f"no adapters at {url}; add one with: lorry adapters push PATH --name NAME")
        return
    write_table(
        (
            *("name", "version", "type", "state", "scale", "rank", "size"),
            *("weights on", "pinned", "digest"),
        ),
        [
            (
                record["name"],
                record["version"],
                record["peft_type"],
                _state(record),
                float(record["scale"]),
                record["rank"] or None,
                format_size(record["bytes"]),
                record["residency"],
                record["pinned"],
                short(record["digest"]),
            )
            for record in records
        ],
    )


def show(
    name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show everything about one adapter."""
    with Connection(url, api_key) as server:
        record = server.request("GET", path_of(name))
    if as_json:
        write_json(record)
        return
    facts: list[tuple[str, object]] = []
    for key, value in record.items():
        if key == "versions":
            value = [f"{item['version']} ({short(item['digest'])})" for item in value]
        elif key in ("split", "aliases"):
            value = [f"{name}: {meaning}" for name, meaning in value.items()]
        elif key == "bytes":
            value = format_size(value)
        elif key == "rank":
            value = value or None
        facts.append((key.replace("_", " "), value))
    write_facts(facts)


def push(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A PEFT folder, or a zip, tar or tar.gz of one. With --from, the adapter's name.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="Its name; by default its folder's."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Let the server read it: a URL (https, s3, gs), a hub id, or a folder there.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", metavar="X", help="Its default scale; 1 is as trained."),
    ] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Register it disabled.")] = False,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Keep it in host memory, whatever else is loaded.")
    ] = False,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="A description for people.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Add a new version if the name is taken.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter, or have the server fetch it with NAME --from SOURCE.

    The server verifies it against its base before it registers it.
    """
    given = {
        "name": name or (_called(path) if source is None else str(path)),
        "scale": scale,
        "enabled": False if disabled else None,
        "pinned": pinned or None,
        "description": description,
        "replace": replace or None,
    }
    fields = {key: value for key, value in given.items() if value is not None}
    with Connection(url, api_key) as server:
        if source is not None:
            body = {**fields, "source": source}
            record = server.request("POST", "/adapters", json=body, timeout=None)
        else:
            form = {key: _in_a_form(value) for key, value in fields.items()}
            record = transfer.upload(server, "/adapters", path, form)
    _say(record, as_json)
    for warning in record.get("warnings", ()):
        report(f"warning: {warning}")


def _in_a_form(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _called(path: Path) -> str:
    """A folder's name, or an archive's without its endings."""
    own = path.resolve().name
    for ending in (".tar.gz", ".tgz", ".tar", ".zip"):
        own = own.removesuffix(ending)
    return own


def pull(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Download an adapter's files into a new folder."""
    with Connection(url, api_key) as server:
        names = transfer.download(server, path_of(name) + "/content", folder, name)
    if as_json:
        write_json({"name": name, "folder": str(folder), "files": names})
    else:
        write_line(f"{name}: {', '.join(names)} in {folder}")


def enable(
    names: Names, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Enable adapters: let requests use them again."""
    _change(names, {"enabled": True}, url, api_key, as_json)


def disable(
    names: Names, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Disable adapters: refuse new requests for them; running ones finish."""
    _change(names, {"enabled": False}, url, api_key, as_json)


def scale(
    name: Name,
    value: Annotated[float, typer.Argument(metavar="X", help="1 is as trained, 0 is the base.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Set the default scale, for requests that give none."""
    _change([name], {"scale": value}, url, api_key, as_json)


def pin(
    names: Names, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Keep adapters in host memory, whatever else is loaded."""
    _change(names, {"pinned": True}, url, api_key, as_json)


def unpin(
    names: Names, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Let adapters leave host memory when others need the room."""
    _change(names, {"pinned": False}, url, api_key, as_json)


def remove(
    names: Names,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", help="Remove only this version.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Remove adapters; requests that are running with them finish."""
    query = {} if version is None else {"version": str(version)}
    with Connection(url, api_key) as server:
        for name in names:
            server.request("DELETE", path_of(name), params=query)
            if not as_json:
                write_line(f"{name} removed" if version is None else f"{name}@{version} removed")
    if as_json:
        write_json({"removed": names})


def _change(
    names: list[str], change: dict[str, Any], url: str, api_key: str | None, as_json: bool
) -> None:
    with Connection(url, api_key) as server:
        records = [server.request("PATCH", path_of(name), json=change) for name in names]
    if as_json:
        write_json(records[0] if len(records) == 1 else records)
        return
    for record in records:
        _say(record, as_json=False)


def _say(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(record)
        return
    pinned = ", pinned" if record["pinned"] else ""
    write_line(
        f"{record['name']}@{record['version']} {short(record['digest'])}: "
        f"{_state(record)}, scale {record['scale']:g}{pinned}"
    )


def _state(record: dict[str, Any]) -> str:
    if record["broken"]:
        return "broken"
    return "enabled" if record["enabled"] else "disabled"


def short(digest: str) -> str:
    """Enough of a digest to tell two apart."""
    return digest[: len("sha256:") + 12]
