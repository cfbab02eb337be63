"""HTTP to a running server, with its errors turned into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Self

import httpx
import typer

from lorry.cli.output import in_a_line
from lorry.errors import LorryError

Url = Annotated[
    str, typer.Option("--url", envvar="LORRY_URL", metavar="URL", help="The server to talk to.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="LORRY_API_KEY",
        metavar="KEY",
        help="The server's API key, if it asks for one.",
        show_default=False,
    ),
]

DEFAULT_URL = "http://127.0.0.1:8000"

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Seconds. The server verifies an upload before it answers, which takes as long as it takes."""


class ServerError(LorryError):
    """The server refused, or there is none."""


class Connection:
    """One server. Use as a context manager; every failure is a ServerError of one line."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = base_of(url)
        try:
            self._client = httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT)
        except httpx.InvalidURL as error:
            raise ServerError(f"{url} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, **more: Any) -> Any:
        """Return the answer's JSON, or None if it has no body."""
        with self.stream(method, path, **more) as response:
            content = self._read(response)
        if not content:
            return None
        try:
            return response.json()
        except ValueError:
            raise ServerError(
                f"{self._url} answered {method} {path} with something other than JSON; "
                "is it a Lorry server?"
            ) from None

    @contextmanager
    def stream(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """The answer with its body still to come; its status is a success."""
        try:
            with self._client.stream(method, path, **more) as response:
                if not response.is_success:
                    self._read(response)
                    raise ServerError(_reason(response))
                yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _read(self, response: httpx.Response) -> bytes:
        try:
            return response.read()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> ServerError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerError(
                f"no server at {self._url} ({error}); start one with `lorry serve`, "
                "or name another with --url"
            )
        if isinstance(error, httpx.UnsupportedProtocol):
            return ServerError(f"{self._url} is no http:// or https:// URL")
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{self._url} did not answer within {TIMEOUT.read:.0f} seconds")
        return ServerError(f"the connection to {self._url} broke: {error or type(error).__name__}")


def base_of(url: str) -> str:
    """Return the server's URL from one that a person or a client's setting has: `host:port`, or
    with OpenAI's `/v1` behind it."""
    if "://" not in url:
        url = f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


def _reason(response: httpx.Response) -> str:
    """Return the server's error message, with every problem it lists."""
    if response.status_code == 401:
        return f"{_told(response)} (--api-key KEY, or LORRY_API_KEY)"
    return _told(response)


def _told(response: httpx.Response) -> str:
    fallback = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
    try:
        body = response.json()
    except ValueError:
        return fallback
    error = body.get("error", body.get("detail")) if isinstance(body, dict) else None
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return fallback
    problems = error.get("problems") or body.get("problems")
    if isinstance(problems, list) and problems:
        return in_a_line(problems)
    return str(error.get("message") or fallback)
