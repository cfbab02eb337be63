"""`lorry doctor`: a finding for every topic with advice where something is not right, and exit code
1 where a server could not run."""

from __future__ import annotations

import json
import socket
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorry.cli import doctor_libraries, doctor_machine, main
from lorry.cli.finding import Finding, FindingState
from lorry.model.compiled import library
from lorry.model.threads import Cores
from lorry.settings import Settings

TOPICS = {"python", "cpu", "memory", "disk", "port", "keys", "clock", "files", "extras"}
TOPICS |= {"torch", "threads", "gpu", "bandwidth", "bitsandbytes", "quantize", "kernels", "model"}

Patch = pytest.MonkeyPatch


@pytest.fixture
def looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run the command with these flags; the findings by topic, the worst of each."""

    def look(*flags: str, home: Path = tmp_path, code: int | None = None) -> Any:
        if "--port" not in flags:
            flags = (*flags, "--port", "0")
        found = main(["doctor", "--home", str(home), "--json", *flags])
        rows = json.loads(capsys.readouterr().out)["findings"]
        assert found == any(row["state"] == "problem" for row in rows)
        for row in rows:
            assert (row["advice"] is None) == (row["state"] == "ok"), row
        assert code in (None, found)
        order = list(FindingState)
        return {
            row["topic"]: row for row in sorted(rows, key=lambda row: order.index(row["state"]))
        }

    return look


def test_every_topic_is_looked_at(looked: Any) -> None:
    rows = looked()
    assert set(rows) == TOPICS
    assert rows["bitsandbytes"]["state"] == "ok"


def test_a_taken_port_is_a_problem(looked: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        row = looked("--port", port, code=1)["port"]
    assert row["state"] == "problem"
    assert "--port" in row["advice"] and port in row["advice"]


def test_a_home_that_cannot_be_made_is_a_problem(looked: Any, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    row = looked(home=file / "home", code=1)["disk"]
    assert row["state"] == "problem" and "--home" in row["advice"]


def test_a_host_that_others_reach_needs_a_key(looked: Any, monkeypatch: Patch) -> None:
    row = looked("--host", "0.0.0.0", code=1)["keys"]
    assert row["state"] == "problem" and "LORRY_API_KEY" in row["advice"]
    monkeypatch.setenv("LORRY_OPEN_TO_ANYONE", "true")
    row = looked("--host", "0.0.0.0")["keys"]
    assert row["state"] == "note" and "lorry keys create" in row["advice"]
    monkeypatch.setenv("LORRY_API_KEY", "k" * 20)
    assert looked("--host", "0.0.0.0")["keys"]["state"] == "ok"


def test_people_get_advice_below_what_it_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--port", "0", "--home", str(tmp_path), "--host", "0.0.0.0"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines if not line.startswith(" ")} == TOPICS
    (at,) = (index for index, line in enumerate(lines) if line.split()[:2] == ["problem", "keys"])
    assert lines[at + 1].lstrip().startswith("-> set LORRY_API_KEY")


Usage = namedtuple("Usage", "total used free")
Check = Callable[[Settings], Iterator[Finding]]


def _by(settings: Settings, check: Check) -> list[Finding]:
    return [one for one in check(settings) if one.state is not FindingState.OK]


def test_each_shortage_has_its_advice(tmp_path: Path, monkeypatch: Patch) -> None:
    """What this machine does not lack is taken away."""
    settings = Settings(home=tmp_path)

    def advice(check: Check, **given: Any) -> str:
        (found,) = _by(Settings(**{"home": tmp_path, **given}), check)
        assert found.advice is not None
        return found.advice

    for check in (doctor_machine._memory, doctor_machine._home, doctor_machine._files):
        assert _by(settings, check) == []
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine, "TESTED_PYTHONS", ((2, 6), (2, 7)))
        assert "2.6 to 2.7" in advice(doctor_machine._python)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine, "_cpuinfo", lambda: ("", frozenset({"avx2"})))
        assert "--kernels" in advice(doctor_machine._cpu)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine.memory_limit, "free", lambda: 1 << 20)
        assert "--kv-cache-memory" in advice(doctor_machine._memory, kv_cache_memory=1 << 30)
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(1 << 30)
        both = _by(Settings(model=str(tmp_path)), doctor_machine._memory)
        assert "smaller base" in str(both[-1].advice)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine.shutil, "disk_usage", lambda path: Usage(1, 1, 0))
        assert "docs/operations.md" in advice(doctor_machine._home)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine, "_write_time", lambda path: 9.0)
        assert "local disk" in advice(doctor_machine._home)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine.time, "time", lambda: 0.0)
        assert "timedatectl" in advice(doctor_machine._clock)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine.resource, "getrlimit", lambda which: (256, 256))
        assert "ulimit -n" in advice(doctor_machine._files)
    with monkeypatch.context() as patch:
        patch.setattr(doctor_machine, "find_spec", lambda name: None)
        assert "lorry[s3]" in advice(doctor_machine._extras, store="s3://bucket")
        assert "lorry[postgres]" in advice(doctor_machine._extras, catalog="postgresql://h/d")
        assert _by(settings, doctor_machine._extras) == []
    with monkeypatch.context() as patch:
        patch.setattr(doctor_libraries.PathFinder, "find_spec", lambda name: None)
        assert "ensurepip" in advice(doctor_libraries._model)
    assert "lorry models list" in advice(doctor_libraries._model, model="/not/there")


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        ("it was not built; install a C compiler and then Lorry again", "install a C compiler"),
        ("this processor has no AVX2", "another processor"),
    ],
)
def test_what_the_compiled_step_lacks(reason: str, cure: str, monkeypatch: Patch) -> None:
    def missing() -> None:
        raise library.Missing(reason)

    monkeypatch.setattr(library, "find", missing)
    (found,) = doctor_libraries._kernels(Settings())
    assert found.state is FindingState.NOTE
    assert found.advice is not None and found.advice.startswith(cure)


@pytest.mark.parametrize(
    ("asked", "cores", "words"),
    [
        (4, Cores(2, None), "--threads to 2"),
        (0, Cores(8, 2.5), "--cpus"),
        (0, Cores(1, None), "second core"),
        (0, Cores(2, None), None),
    ],
)
def test_threads(asked: int, cores: Cores, words: str | None) -> None:
    found = doctor_libraries._of_threads(asked, cores)
    assert words is None if found.advice is None else str(words) in found.advice
