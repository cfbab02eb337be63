"""`lorry chat`, `ask` and `ps` against a real server."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.cli import main
from lorry.cli.server_connection import Connection
from lorry.settings import Settings
from support.peft_adapters import pack


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[[str], Path],
    peft_adapter: Callable[..., Path],
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(
        model=str(tiny_model("llama")),
        served_model_name="tiny",
        home=home,
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=4 << 20,
        samples=False,
    )
    with serve(settings) as one:
        archive = pack(peft_adapter("llama", "plain"), home.parent / "pirate.zip")
        assert one.upload("pirate", archive).status_code == 201
        yield one


@pytest.fixture
def lorry(
    live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, str]]:
    """`lorry("ask", ..., typed="...")`: what was written, and what was reported."""

    def run(*arguments: str, typed: str = "", code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        # The server runs in this process: its log is not what the command reports.
        monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
        given = main([*arguments, "--url", live.url])
        captured = capsys.readouterr()
        assert given == code, captured.err
        return captured.out, captured.err

    return run


ASKED = ("--temperature", "0", "--max-tokens", "6")


def answer(live: Live, *said: str, **more: object) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": one} for at, one in enumerate(said)]
    body = {"messages": messages, "temperature": 0, "max_tokens": 6, **more}
    found = live.http.post("/v1/chat/completions", json=body).json()
    return str(found["choices"][0]["message"]["content"])


def test_a_question_and_its_answer(live: Live, lorry: Callable[..., tuple[str, str]]) -> None:
    assert lorry("ask", "Ahoy", *ASKED)[0] == answer(live, "Ahoy") + "\n"
    pirate = answer(live, "Ahoy", model="pirate")
    assert pirate != answer(live, "Ahoy")
    assert lorry("ask", "Ahoy", "-a", "pirate", *ASKED)[0] == pirate + "\n"
    assert lorry("ask", "-", "-a", "pirate", *ASKED, typed="Ahoy")[0] == pirate + "\n"
    none = lorry("ask", "Ahoy", "-a", "pirate", "--scale", "0", *ASKED)[0]
    assert none == answer(live, "Ahoy") + "\n"
    whole = json.loads(lorry("ask", "Ahoy", "-a", "pirate", "--json", *ASKED)[0])
    assert whole["choices"][0]["message"]["content"] == pirate


def test_a_conversation_remembers_and_changes_adapters(
    live: Live, lorry: Callable[..., tuple[str, str]]
) -> None:
    typed = "Ahoy\nagain\n/adapter pirate\nand now\n/new\nAhoy\n/scale 0\n/new\nAhoy\n"
    out, err = lorry("chat", *ASKED, typed=typed)
    first = answer(live, "Ahoy")
    second = answer(live, "Ahoy", first, "again")
    third = answer(live, "Ahoy", first, "again", second, "and now", model="pirate")
    fresh = answer(live, "Ahoy", model="pirate")
    assert out == "".join(f"{one}\n" for one in (first, second, third, fresh, first))
    assert err == "pirate\npirate at 0\n"


def test_mistakes_in_a_conversation_do_not_end_it(
    live: Live, lorry: Callable[..., tuple[str, str]]
) -> None:
    typed = "/adapter nobody\n/scale loud\n/dance\nAhoy\n/exit\nnever sent\n"
    out, err = lorry("chat", *ASKED, typed=typed)
    assert out == answer(live, "Ahoy") + "\n"
    unknown, scale, command = err.splitlines()
    assert "'nobody'" in unknown and "'loud'" in scale and "/dance" in command
    assert all(line.startswith("error: ") for line in err.splitlines())


@pytest.mark.parametrize("arguments", [("ask", "Ahoy"), ("chat",)])
def test_an_answer_without_a_limit_ends_at_the_default(
    lorry: Callable[..., tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    asked: list[dict[str, object]] = []
    stream = Connection.stream

    def watched(server: Connection, method: str, path: str, **more: Any) -> Any:
        asked.append(more["json"])
        return stream(server, method, path, **more)

    monkeypatch.setattr(Connection, "stream", watched)
    monkeypatch.setattr("lorry.cli.chat_commands.DEFAULT_MAX_TOKENS", 6)
    greedy = (*arguments, "--temperature", "0")
    out, err = lorry(*greedy, typed="Ahoy\n")
    assert (out, "") == lorry(*greedy, "--max-tokens", "6", typed="Ahoy\n")
    assert "cut off after 6 tokens" in err and "--max-tokens" in err
    assert [body["max_tokens"] for body in asked] == [6, 6]


def test_an_unknown_adapter_is_told_at_once(lorry: Callable[..., tuple[str, str]]) -> None:
    out, err = lorry("chat", "nobody", typed="Ahoy\n", code=1)
    assert out == "" and "'nobody'" in err


@pytest.mark.parametrize(
    "command",
    [
        ("chat", "pirat"),
        ("ask", "Ahoy", "--adapter", "pirat"),
        ("adapters", "show", "pirat"),
        ("adapters", "disable", "pirat"),
        ("adapters", "rm", "pirat"),
    ],
)
def test_a_misspelt_adapter_is_told_with_the_one_that_was_meant(
    lorry: Callable[..., tuple[str, str]], command: tuple[str, ...]
) -> None:
    out, err = lorry(*command, typed="Ahoy\n", code=1)
    assert out == "" and "did you mean 'pirate'?" in err


def test_what_a_server_does(live: Live, lorry: Callable[..., tuple[str, str]]) -> None:
    body = json.loads(lorry("ps", "--json")[0])
    assert (body["model_id"], body["adapters"], body["adapters_broken"]) == ("tiny", 1, [])
    assert body["running"] == 0 and body["waiting"] == 0
    assert "model id" in lorry("ps")[0]


def test_an_adapter_is_called_as_its_folder(
    live: Live, lorry: Callable[..., tuple[str, str]], peft_adapter: Callable[..., Path]
) -> None:
    folder = peft_adapter("llama", "plain", seed=2)
    lorry("adapters", "push", str(folder))
    assert live.http.get(f"/adapters/{folder.name}").status_code == 200
    live.http.delete(f"/adapters/{folder.name}")


def test_a_mistyped_command_is_sent_to_its_own_help(
    lorry: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapters", "show"]) == 2
    assert "(lorry adapters show --help)" in capsys.readouterr().err
