"""`lorry chat` and `lorry ask`: talk to a running server's base or one of its adapters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any

import typer

from lorry.cli.output import AsJson, report, report_error, write_json
from lorry.cli.server_connection import DEFAULT_URL, ApiKey, Connection, ServerError, Url

Adapter = Annotated[
    str | None,
    typer.Argument(
        metavar="[ADAPTER]",
        help="The adapter to talk to, NAME or NAME@VERSION; by default the base.",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option("--scale", metavar="X", help="The adapter's scale; by default its own."),
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="Instructions before the first turn.")
]
DEFAULT_MAX_TOKENS = 1024
"""A small base may never end its answer by itself."""

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        metavar="N",
        help=f"The most tokens of an answer. By default {DEFAULT_MAX_TOKENS}.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="Sampling temperature; 0 is greedy. By default 1."
    ),
]

COMMANDS = """\
/adapter NAME   talk to this adapter from now on; without a name, to the base
/scale X        use this scale; without a number, the adapter's default
/system TEXT    start over with these instructions
/new            start over
/help           show this list
/exit           leave; so does the end of the input"""


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)
    app.command("ask")(ask)


@dataclass(slots=True)
class Talk:
    """One conversation and the settings of its answers."""

    adapter: str | None = None
    scale: float | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    system: InitVar[str | None] = None
    messages: list[dict[str, str]] = field(init=False)

    def __post_init__(self, system: str | None) -> None:
        self.begin(system)

    def begin(self, system: str | None) -> None:
        self.messages = [] if not system else [{"role": "system", "content": system}]

    def body(self) -> dict[str, Any]:
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        asked: dict[str, Any] = {"messages": self.messages, "stream": True, "max_tokens": limit}
        if self.adapter is not None:
            one: dict[str, Any] = {"name": self.adapter}
            asked["adapter"] = one if self.scale is None else {**one, "scale": self.scale}
        if self.temperature is not None:
            asked["temperature"] = self.temperature
        return asked

    def headers(self) -> dict[str, str]:
        """Return the header by which a balancer finds the adapter's server."""
        return {} if self.adapter is None else {"x-lorry-adapter": self.adapter.partition("@")[0]}


def chat(
    adapter: Adapter = None,
    scale: Scale = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Chat line by line; answers are streamed. /help lists the commands."""
    talk = Talk(adapter, scale, max_tokens, temperature, system)
    with Connection(url, api_key) as server:
        # An unknown name is an error before the first question is typed.
        _know(server, adapter)
        if sys.stdin.isatty():
            report(f"{_whom(talk)} at {url}; /help for commands, Ctrl-D to leave")
        for line in _typed(talk):
            if line.startswith("/") and not line.startswith("//"):
                try:
                    _obey(server, talk, line)
                except ServerError as error:
                    report_error(str(error))
            elif line:
                _turn(server, talk, line.removeprefix("/") if line.startswith("//") else line)


def ask(
    question: Annotated[
        str, typer.Argument(metavar="TEXT", help="The question; - reads it from standard input.")
    ],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", "-a", metavar="NAME", help="The adapter to ask; by default the base."
        ),
    ] = None,
    scale: Scale = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question; the answer goes to standard output."""
    talk = Talk(adapter, scale, max_tokens, temperature, system)
    text = sys.stdin.read() if question == "-" else question
    talk.messages.append({"role": "user", "content": text})
    with Connection(url, api_key) as server:
        if as_json:
            body = {**talk.body(), "stream": False}
            path = "/v1/chat/completions"
            write_json(server.request("POST", path, json=body, headers=talk.headers()))
        else:
            _answer(server, talk)


def _turn(server: Connection, talk: Talk, line: str) -> None:
    talk.messages.append({"role": "user", "content": line})
    try:
        said = _answer(server, talk)
    except ServerError as error:
        talk.messages.pop()
        report_error(str(error))
    except KeyboardInterrupt:
        # Ctrl-C ends this answer only; the conversation goes on without the question.
        talk.messages.pop()
        typer.echo()
    else:
        talk.messages.append({"role": "assistant", "content": said})


def _answer(server: Connection, talk: Talk) -> str:
    """Write the answer as it arrives and return all of it. Raises ServerError."""
    said, reason = "", None
    for choice in _choices(server, talk):
        delta = choice["delta"].get("content") or ""
        typer.echo(delta, nl=False)
        sys.stdout.flush()
        said += delta
        reason = choice["finish_reason"] or reason
    typer.echo()
    if reason == "length" and talk.max_tokens is None:
        report(
            f"the answer was cut off after {DEFAULT_MAX_TOKENS} tokens or at the end of the "
            "context; --max-tokens N sets another limit"
        )
    return said


def _choices(server: Connection, talk: Talk) -> Iterator[dict[str, Any]]:
    """Yield the choices of a stream's chunks."""
    path = "/v1/chat/completions"
    with server.stream("POST", path, json=talk.body(), headers=talk.headers()) as response:
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise ServerError(str(event["error"].get("message", event["error"])))
            yield from event["choices"]


def _obey(server: Connection, talk: Talk, line: str) -> None:
    """Run a command: a line that begins with a slash. Raises ServerError."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/adapter":
        _know(server, rest or None)
        talk.adapter, talk.scale = rest or None, None
        report(_whom(talk))
    elif command == "/scale":
        try:
            talk.scale = float(rest) if rest else None
        except ValueError:
            report_error(f"/scale takes a number, not {rest!r}")
        else:
            report(_whom(talk))
    elif command == "/system":
        talk.begin(rest)
    elif command == "/new":
        system = [one["content"] for one in talk.messages if one["role"] == "system"]
        talk.begin(system[0] if system else None)
    elif command == "/help":
        report(COMMANDS)
    elif command in ("/exit", "/quit"):
        raise typer.Exit
    else:
        report_error(
            f"{command} is not a command; /help lists them, and a line that begins with // is "
            "sent with one /"
        )


def _typed(talk: Talk) -> Iterator[str]:
    while True:
        try:
            line = input(f"{talk.adapter or 'base'}> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            typer.echo()
            return
        yield line


def _know(server: Connection, adapter: str | None) -> None:
    """Raise ServerError if the server has no such adapter."""
    if adapter is not None:
        server.request("GET", f"/v1/models/{adapter}")


def _whom(talk: Talk) -> str:
    if talk.adapter is None:
        return "the base"
    return talk.adapter if talk.scale is None else f"{talk.adapter} at {talk.scale:g}"
