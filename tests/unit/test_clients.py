"""The table of clients: it has the tests that there are, in the versions that are pinned."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from clients import __main__ as program
from clients import environment, outcomes, table
from clients.catalog import CLIENTS, HERE, QUICK, Client, feature, groups, pins, tried
from clients.outcomes import Row


def test_every_file_of_tests_is_in_the_catalog() -> None:
    files = [*HERE.glob("*/test_*.py"), *HERE.glob("*/test_*.mjs")]
    assert {str(file.relative_to(HERE)) for file in files} == {client.file for client in CLIENTS}
    assert QUICK in groups()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_results_are_of_the_tests_and_the_version_that_there_are(client: Client) -> None:
    row = outcomes.load().get(client.name)
    assert row is not None, f"run: make clients ARGS={client.group}"
    assert row.version == client.version, f"run: make clients ARGS={client.group}"
    expected = {test: reason or "" for test, reason in tried(client).items()}
    assert row.tests == expected, f"run: make clients ARGS={client.group}"


def test_the_table_is_that_of_the_results() -> None:
    rows = outcomes.load()
    assert rows.keys() == {client.name for client in CLIENTS}
    assert table.written() == table.render(rows), "run: make clients"


@pytest.mark.parametrize("group", groups())
def test_every_package_has_one_version(group: str) -> None:
    assert {client.package for client in CLIENTS if client.group == group} <= pins(group).keys()
    if (HERE / group / "package.json").exists():
        assert all(version[0].isdigit() for version in pins(group).values())
        return
    for name in ("requirements.txt", "constraints.txt"):
        lines = (HERE / group / name).read_text().splitlines()
        assert all("==" in line or line.startswith("#") for line in lines), name


def test_a_test_is_of_the_column_that_its_name_begins_with() -> None:
    assert feature("tools") == feature("tools_streamed") == "tools"
    assert feature("toolset") is None


def test_a_client_with_a_fault_has_its_reason_below_the_table() -> None:
    name = CLIENTS[0].name
    row = Row("1.0", "2026-01-02", {"chat": "", "stream": "", "stream_ends": "why", "other": "why"})
    heads, _, cells, *rest = table.render({name: row}).splitlines()
    chat, stream, other = (heads.split(" | ").index(head) for head in ("Chat", "Streams", "Also |"))
    found = cells.split(" | ")
    assert (found[chat], found[stream], found[other]) == ("✔", "✔ / ✘ (1)", "other ✘ (1) |")
    assert rest == ["", "1. why", "", "Run on 2026-01-02."]


def test_outcomes_are_read_from_junit(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(
        "<testsuites><testsuite>"
        '<testcase name="test_chat"/>'
        '<testcase name="test_tools[a]"><failure message="E: no call&#10;more"/></testcase>'
        '<testcase name="test_tools[b]"/>'
        '<testcase name="test_stream"><skipped type="pytest.xfail" message="why"/></testcase>'
        "</testsuite></testsuites>"
    )
    row = outcomes.read(CLIENTS[0], file)
    assert row.tests == {"chat": "", "tools": "E: no call", "stream": "why"}


@pytest.mark.parametrize("index", ["", "https://torch.example/cpu"])
def test_torch_is_installed_first_and_alone_from_its_own_index(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "requirements.txt").write_text("guidellm==1.0\n")
    (tmp_path / "load" / "constraints.txt").write_text("click==8.4\ntorch==2.0\ntorchdata==1.0\n")
    ran: list[list[str]] = []

    def run(group: str, command: list[str]) -> None:
        (tmp_path / "built" / group).mkdir(parents=True, exist_ok=True)
        ran.append(command)

    monkeypatch.setattr(environment, "HERE", tmp_path)
    monkeypatch.setattr(environment, "BUILT", tmp_path / "built")
    monkeypatch.setattr(environment, "_run", run)
    monkeypatch.setenv("TORCH_INDEX", index)
    environment.build("load")
    _, torch, rest = ran
    where = ["--index-url", index] if index else []
    assert torch[torch.index("--no-deps") + 1 :] == [*where, "torch==2.0"]
    assert "--index-url" not in rest and "--requirement" in rest


def test_a_run_that_told_nothing_leaves_no_older_row() -> None:
    first, second, third, *_ = (client.name for client in CLIENTS)
    old, new = Row("1.0", "2026-01-02", {"chat": ""}), Row("2.0", "2026-01-03", {"chat": "why"})
    rows = outcomes.renewed({first: old, second: old, third: old, "gone": old}, {})
    assert rows == {first: old, second: old, third: old}
    rows = outcomes.renewed({first: old, second: old, third: old}, {first: new, second: None})
    assert rows == {first: new, third: old}
    assert f"`{second}`" not in table.render(rows)


def test_a_client_that_cannot_be_started_is_an_error_and_loses_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = CLIENTS[0].group
    file, page = tmp_path / "results.json", tmp_path / "README.md"
    file.write_text(outcomes.FILE.read_text())
    page.write_text(table.README.read_text())
    monkeypatch.setattr(outcomes, "FILE", file)
    monkeypatch.setattr(table, "README", page)
    monkeypatch.setattr(program, "built", list)
    monkeypatch.setattr(program, "default_base", lambda: nullcontext(Nowhere()))
    monkeypatch.setattr(environment, "BUILT", tmp_path)
    monkeypatch.setattr(environment, "command", lambda *_: [sys.executable, "-c", "exit(1)"])
    monkeypatch.setattr(sys, "argv", ["clients", group])
    assert program.main() == 1
    lost = {client.name for client in CLIENTS if client.group == group}
    assert outcomes.load().keys() == {client.name for client in CLIENTS} - lost
    assert table.written() == table.render(outcomes.load())


class Nowhere:
    """Where no server is."""

    url = "http://127.0.0.1:9"

    def tail(self) -> str:
        return ""


def test_what_cannot_be_installed_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()
    for name in ("requirements.txt", "constraints.txt"):
        (tmp_path / "none" / name).write_text("no-such-client==1.0\n")
    monkeypatch.setattr(environment, "HERE", tmp_path)
    monkeypatch.setattr(environment, "BUILT", tmp_path / "built")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(environment.ClientsError) as refused:
        environment.build("none")
    assert "clients/none cannot be installed" in str(refused.value)
    assert "no-such-client==1.0" in str(refused.value)
    assert "\n" not in str(refused.value)
