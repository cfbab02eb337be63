"""`lorry keys`: a running server's API keys."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from lorry.cli.group import new_group
from lorry.cli.output import AsJson, report, write_facts, write_json, write_line, write_table
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, Url
from lorry.errors import SettingsError

Name = Annotated[str, typer.Argument(metavar="NAME", help="The key's name or id.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="SCOPE", help="generate, upload or admin; may be repeated."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME",
        help="An adapter's name, or a prefix such as 'legal-*'; may be repeated. Without it: all.",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=N",
        help="requests_per_minute, tokens_per_minute, concurrent_requests, max_adapters, "
        "max_adapter_bytes, max_scale or max_rank; may be repeated.",
    ),
]
Description = Annotated[
    str | None, typer.Option("--description", metavar="TEXT", help="A description for people.")
]


def build_app() -> typer.Typer:
    app = new_group("Create, list, change, rotate and revoke a server's API keys.")
    app.command("list")(list_keys)
    app.command("show")(show)
    app.command("create")(create)
    app.command("change")(change)
    app.command("rotate")(rotate)
    app.command("revoke")(revoke)
    return app


def list_keys(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List every key, without its text."""
    with Connection(url, api_key) as server:
        body = server.request("GET", "/keys")
    if as_json:
        write_json(body)
    elif not body["keys"]:
        report(f"no keys at {url}; make one with: lorry keys create NAME --scope admin")
    else:
        write_table(
            ("name", "id", "scopes", "adapters", "limits", "created"),
            [
                (
                    key["name"],
                    key["id"],
                    key["scopes"],
                    "all" if key["adapters"] is None else key["adapters"],
                    _limits_shown(key),
                    key["created_at"][:16],
                )
                for key in body["keys"]
            ],
        )


def show(
    name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show a key, without its text."""
    with Connection(url, api_key) as server:
        _say(server.request("GET", _path(name)), as_json)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for the key.")],
    scopes: Scopes = None,
    adapters: Adapters = None,
    limits: Limits = None,
    description: Description = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once; the server keeps only a digest of it.

    Without --scope it is for generate. The first key needs the scope admin.
    """
    body: dict[str, Any] = {"name": name, "scopes": scopes or ["generate"]}
    body |= {"adapters": adapters or None, "limits": _limits_of(limits)}
    body["description"] = description
    with Connection(url, api_key) as server:
        _show_once(server.request("POST", "/keys", json=body), as_json)


def change(
    name: Name,
    scopes: Scopes = None,
    adapters: Adapters = None,
    all_adapters: Annotated[
        bool, typer.Option("--all-adapters", help="Let it use every adapter.")
    ] = False,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=N", help="As for create; NAME=none removes it."),
    ] = None,
    description: Description = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Change a key's scopes, adapters or limits, from the next request on."""
    if adapters and all_adapters:
        raise SettingsError("--adapter and --all-adapters contradict each other; give one of them")
    body: dict[str, Any] = {"scopes": scopes or None, "description": description}
    body["limits"] = _limits_of(limits)
    if adapters or all_adapters:
        body["adapters"] = adapters or None
    with Connection(url, api_key) as server:
        _say(server.request("PATCH", _path(name), json=body), as_json)


def rotate(
    name: Name,
    keep_old: Annotated[
        float,
        typer.Option("--keep-old", metavar="SECONDS", help="How long the old one is still good."),
    ] = 0.0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key's text by a new one, which is shown this once."""
    with Connection(url, api_key) as server:
        made = server.request("POST", f"{_path(name)}/rotate", json={"keep_old": keep_old})
    _show_once(made, as_json)


def revoke(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="One or more names or ids.")
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Revoke keys: they are refused from the next request on."""
    with Connection(url, api_key) as server:
        for name in names:
            server.request("DELETE", _path(name))
            if not as_json:
                write_line(f"{name} revoked")
    if as_json:
        write_json({"revoked": names})


def _path(name: str) -> str:
    return f"/keys/{quote(name, safe='')}"


def _limits_of(given: list[str] | None) -> dict[str, Any] | None:
    """Return `NAME=N` texts as JSON. The server checks names and values."""
    limits: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        try:
            limits[name] = None if value == "none" else float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise SettingsError(f"--limit {text}: write a name and a number, such as max_rank=16")
        if isinstance(limits[name], float) and limits[name].is_integer():
            limits[name] = int(limits[name])
    return limits or None


def _limits_shown(key: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in key["limits"].items() if value is not None]


def _show_once(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(made)
        return
    write_line(made["key"])
    report(f"this is the key {made['name']!r}; keep it now, as nothing shows it again")


def _say(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(key)
        return
    shown = {**key, "limits": _limits_shown(key)}
    shown["adapters"] = "all" if key["adapters"] is None else key["adapters"]
    write_facts([(name.replace("_", " "), value) for name, value in shown.items()])
