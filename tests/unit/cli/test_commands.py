"""The command line's manners: exit codes, one line of error, nothing but JSON for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorry import __version__
from lorry.cli import main
from lorry.settings import options


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "hi"],
        ["serve", "--port", "99999"],
        ["serve", "--quantize", "int3"],
        ["serve", "--max-loras", "0"],
        ["serve", "--kv-cache-memory", "much"],
        ["serve", "--config", "/nowhere/settings.toml"],
        ["serve", "--no-such-flag"],
        ["serve", "one", "two"],
        ["no-such-command"],
        ["adapters", "no-such-command"],
        ["adapters", "push"],
        ["adapters", "scale", "legal"],
        ["adapters", "scale", "legal", "much"],
        ["models", "pull", "--revision"],
    ],
)
def test_a_wrongly_typed_command_is_one_line_and_code_2(run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapters", "list", "--url", "http://127.0.0.1:9"], "no server at http://127.0.0.1:9"),
        (["adapters", "list", "--url", "127.0.0.1:9"], "no server at http://127.0.0.1:9 ("),
        (["ps", "--url", "http://127.0.0.1:9/v1/"], "no server at http://127.0.0.1:9 ("),
        (["ps", "--url", "ftp://127.0.0.1:9"], "no http:// or https:// URL"),
        (["adapters", "push", "/nowhere", "--name", "x"], "/nowhere does not exist"),
        (["adapters", "check", "/nowhere"], "/nowhere does not exist"),
        (["models", "pull", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_1(
    run, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_HOME", str(tmp_path))
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_a_wrong_setting_is_named_by_its_flag(run) -> None:
    assert "--port" in run("serve", "--port", "hi")[2]


def test_a_wrong_variable_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_MAX_LORAS", "many")
    code, _, err = run("serve")
    assert code == 2
    assert "LORRY_MAX_LORAS" in err


def test_serve_has_a_flag_for_every_setting(run) -> None:
    code, out, _ = run("serve", "--help")
    assert code == 0
    for option in options():
        assert option.flag in out
        assert option.variable in out.replace("\n", "").replace(" ", "")
        if option.negative_flag:
            assert option.negative_flag in out


def test_flags_reach_the_settings(monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path) -> None:
    from lorry import bootstrap

    served = []
    monkeypatch.setattr(bootstrap, "serve", served.append)
    file = tmp_path / "lorry.toml"
    file.write_text("max_loras = 3\nport = 1234\n")
    base = str(tmp_path)
    arguments = [base, "--port", "0", "--no-samples", "--kv-cache-memory", "64MiB"]
    arguments += ["--home", str(tmp_path / "home")]
    code, _, err = run("serve", *arguments, "--config", str(file))
    assert (code, err) == (0, "")
    (settings,) = served
    assert settings.model == base
    assert settings.port == 0
    assert settings.samples is False
    assert settings.kv_cache_memory == 64 << 20
    assert settings.max_loras == 3


@pytest.mark.parametrize("arguments", [[], ["adapters"], ["models"], ["--help"], ["-h"]])
def test_a_group_said_alone_shows_what_it_holds(run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "Commands:" in out


def test_the_version_is_the_distributions(run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.split() == ["lorry", __version__]


def test_listing_commands_start_without_torch() -> None:
    """Torch takes seconds to import; a table of adapters must not wait for it."""
    code = (
        "import sys; from lorry.cli import main; main(['adapters', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'fastapi')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_models_are_listed_for_people_and_for_scripts(run, tmp_path: Path) -> None:
    code, out, _ = run("models", "list", "--home", str(tmp_path))
    assert code == 0
    assert "smollm2-135m (default)" in out
    code, out, _ = run("models", "list", "--home", str(tmp_path), "--json")
    (row,) = json.loads(out)
    assert row["name"] == "smollm2-135m"
    assert row["cached"] is False
    assert row["default"] is True


def test_pull_of_a_folder_says_where_it_is(run, tiny_model, tmp_path: Path) -> None:
    folder = tiny_model("llama")
    code, out, _ = run("models", "pull", str(folder), "--home", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)["folder"] == str(folder)
