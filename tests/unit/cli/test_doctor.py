"""`lorry doctor`: a finding for every topic, and exit code 1 where a server could not run."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from lorry.cli import main

TOPICS = {"python", "cpu", "memory", "disk", "port", "torch", "threads", "gpu", "bandwidth"}
TOPICS |= {"bitsandbytes", "quantize", "kernels", "model"}


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    return {row["topic"]: row for row in json.loads(capsys.readouterr().out)["findings"]}


def test_every_topic_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--port", "0", "--home", str(tmp_path), "--json"])
    rows = findings(capsys)
    assert set(rows) == TOPICS
    assert code == any(row["state"] == "problem" for row in rows.values())
    assert rows["bitsandbytes"]["state"] == "ok"


def test_a_taken_port_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        assert main(["doctor", "--port", port, "--home", str(tmp_path), "--json"]) == 1
    row = findings(capsys)["port"]
    assert row["state"] == "problem"
    assert "--port" in row["text"]


def test_a_home_that_cannot_be_made_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    assert main(["doctor", "--port", "0", "--home", str(file / "home"), "--json"]) == 1
    assert findings(capsys)["disk"]["state"] == "problem"


def test_people_get_a_line_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--port", "0", "--home", str(tmp_path)])
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == TOPICS
