"""`lorry keys` and `lorry audit` against the real routes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import serve
from lorry.cli import main
from lorry.settings import Settings
from support.patience import client


@pytest.fixture
def url(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Iterator[str]:
    settings = Settings(
        model=str(tiny_model("llama")),
        home=tmp_path / "home",
        device="cpu",
        dtype="float32",
        quantize="none",
        kv_cache_memory=4 << 20,
        samples=False,
    )
    with serve(settings) as one:
        yield one.url


@pytest.fixture
def run(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, str]]:
    """`run("keys", "list")`: what it wrote on standard output and standard error."""
    monkeypatch.setenv("LORRY_URL", url)

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        given = main(list(arguments))
        captured = capsys.readouterr()
        assert given == code, captured.err
        return captured.out, captured.err

    return run


def test_a_key_s_life(run: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "make one with: lorry keys create" in run("keys", "list")[1]
    assert "must have the scope admin" in run("keys", "create", "team", code=1)[1]
    boss, said = run("keys", "create", "boss", "--scope", "admin")
    assert said == "this is the key 'boss'; keep it now, as nothing shows it again\n"
    assert "--api-key KEY, or LORRY_API_KEY" in run("keys", "list", code=1)[1]
    monkeypatch.setenv("LORRY_API_KEY", boss.strip())

    more = ("--adapter", "legal-*", "--limit", "max_scale=0.5", "--limit", "max_rank=8")
    team = json.loads(run("keys", "create", "team", *more, "--json")[0])
    assert (team["scopes"], team["adapters"]) == (["generate"], ["legal-*"])
    assert (team["limits"]["max_scale"], team["limits"]["max_rank"]) == (0.5, 8)
    run("keys", "change", "team", "--scope", "upload", "--limit", "max_rank=none")
    shown = json.loads(run("keys", "show", team["id"], "--json")[0])
    assert shown["scopes"] == ["upload"] and shown["limits"]["max_rank"] is None
    assert shown["adapters"] == ["legal-*"]
    run("keys", "change", "team", "--all-adapters")
    assert "all" in run("keys", "show", "team")[0]
    listed = run("keys", "list")[0]
    assert "team" in listed and "max_scale=0.5" in listed and team["key"] not in listed

    rotated = run("keys", "rotate", "team")[0].strip()
    with client(url, headers={"x-api-key": rotated}) as one:
        assert one.get("/v1/models").status_code == 200
        assert run("keys", "revoke", "team")[0] == "team revoked\n"
        assert one.get("/v1/models").status_code == 401
    assert "no key is named 'team'" in run("keys", "revoke", "team", code=1)[1]

    audit = run("audit", "--key", "team")[0]
    for word in ("created", "changed", "rotated", "revoked", "boss", "127.0.0.1"):
        assert word in audit
    entries = json.loads(run("audit", "--limit", "2", "--json")[0])
    assert [entry["action"] for entry in entries["entries"]] == ["revoked", "rotated"]
    assert run("audit", "--adapter", "none")[1] == "no changes\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "a", "--limit", "max_rank"), "write a name and a number"),
        (("create", "a", "--limit", "max_rank=x"), "write a name and a number"),
        (("change", "a", "--adapter", "b", "--all-adapters"), "contradict each other"),
    ],
)
def test_mistyped(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *arguments]) == 2
    assert said in capsys.readouterr().err
