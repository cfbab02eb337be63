"""What a shell offers where an adapter's name is asked for."""

from __future__ import annotations

import os

import httpx
import typer

from lorry.cli.server_connection import DEFAULT_URL, base_of

PATIENCE = 1.0
"""Seconds: whoever presses the key waits."""


def adapter_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names on the server that begin so; none if it does not answer."""
    url = context.params.get("url") or os.environ.get("LORRY_URL", DEFAULT_URL)
    key = context.params.get("api_key") or os.environ.get("LORRY_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{base_of(url)}/adapters", headers=headers, timeout=PATIENCE)
        names = [str(record["name"]) for record in answer.raise_for_status().json()["adapters"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]
