"""What a whole run writes with `--log-format json`: JSON, line by line, from start to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.patience import PATIENCE
from support.server import running, start


def parsed(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert line.keys() >= {"time", "level", "logger", "message"}
    return lines


def test_every_line_of_a_run_is_json(model: Path, tmp_path: Path) -> None:
    with running(model, tmp_path / "home", "--log-format", "json", "--samples") as server:
        mine = {"X-Request-Id": "req-7"}
        server.client.get("/health", headers=mine).raise_for_status()
        body = {"prompt": "x", "max_tokens": 3}
        server.client.post("/v1/completions", json=body, headers=mine).raise_for_status()
        server.client.post("/v1/completions", json={"prompt": 7}, headers=mine)
        log = server.log
    lines = parsed(log.read_text())
    said = [line["message"] for line in lines]
    assert any(line.startswith("lorry serves") for line in said)
    assert any(line.startswith("shutting down") for line in said)
    asked = [line for line in lines if line["logger"] == "lorry.requests"]
    assert [(line["message"], line["request_id"]) for line in asked] == [
        ("POST /v1/completions", "req-7"),
        ("POST /v1/completions", "req-7"),
    ], "health checks are quiet"
    assert asked[0]["status"] == 200 and asked[0]["prompt_tokens"] > 0
    assert asked[1]["status"] >= 400 and asked[1]["error"] and asked[1]["reason"]
    assert {line["level"] for line in lines} == {"info"}, said


def test_a_start_that_fails_says_why_in_json(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ["--port", str(taken.getsockname()[1]), "--log-format", "json"]
        command = [sys.executable, "-m", "lorry", "serve", str(model), *flags]
        environment = {**os.environ, "LORRY_HOME": str(tmp_path / "home")}
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert ended.returncode == 2
    (line,) = parsed(ended.stdout + ended.stderr)
    assert line["level"] == "error" and "cannot listen" in line["message"]


def test_people_read_text(model: Path, tmp_path: Path) -> None:
    server = start(model, tmp_path / "home")
    server.client.get("/v1/models").raise_for_status()
    server.process.send_signal(signal.SIGINT)
    assert server.wait() == 0
    server.client.close()
    text = server.log.read_text()
    assert " INFO lorry.requests GET /v1/models status=200 " in text
    assert "uvicorn" not in text, "its news are ours"
    assert "\nshutting down: " in text
