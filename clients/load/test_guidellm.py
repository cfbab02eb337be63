"""vLLM's `guidellm`: loads over OpenAI's routes, and the report of what came back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BASE, ADAPTER = "smollm2-135m", "pirate"
REQUESTS, TOKENS = 4, 6
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def measure(url: str, tmp_path: Path) -> Any:
    """Runs the program; the requests of each load, by how they ended."""

    def run(route: str, model: str | None = BASE, profile: str = "synchronous", **more: Any) -> Any:
        rows = [
            {"prompt": f"Question {number}: Where is Paris?", "output_tokens_count": TOKENS}
            for number in range(REQUESTS)
        ]
        data, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
        data.write_text("".join(json.dumps(row | more.get("row", {})) + "\n" for row in rows))
        backend = {"target": url, "request_format": f"/v1/{route}", **more.get("backend", {})}
        if model is not None:
            backend["model"] = model
        arguments = {
            "--backend": {"kind": "openai_http", **backend},
            "--profile": {"kind": profile, **more.get("profile_with", {})},
            "--constraint": {"kind": "max_requests", "count": REQUESTS},
            "--data": {"kind": "json_file", "path": str(data)},
            "--output": {"kind": "json", "path": str(report)},
        }
        command = [sys.executable, "-m", "guidellm", "run", "--disable-console"]
        for flag, value in arguments.items():
            command += [flag, json.dumps(value)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return [benchmark["requests"] for benchmark in json.loads(report.read_text())["benchmarks"]]

    return run


def answered(requests: Any, least: int = REQUESTS) -> list[Any]:
    """All of them, where none failed and each has what it asked for."""
    assert not requests["errored"] and not requests["incomplete"]
    found: list[Any] = requests["successful"]
    assert least <= len(found) <= REQUESTS
    assert all(one["output"] and one["output_tokens"] == TOKENS for one in found)
    assert all(one["prompt_tokens"] > 4 for one in found)
    return found


def test_chat(measure: Any) -> None:
    (requests,) = measure("chat/completions", model=None, backend={"stream": False})
    answered(requests)


def test_stream(measure: Any) -> None:
    (requests,) = measure("chat/completions")
    for one in answered(requests):
        timings = one["info"]["timings"]
        assert timings["first_token_iteration"] < timings["last_token_iteration"]


def test_adapter(measure: Any) -> None:
    greedy = {"extras": {"body": {"temperature": 0}}}
    (base,), (pirate,) = (measure("completions", name, backend=greedy) for name in (BASE, ADAPTER))
    said = [{one["output"] for one in answered(requests)} for requests in (base, pirate)]
    assert said[0] != said[1]


def test_tools(measure: Any) -> None:
    """Each is a conversation: a call, then the answer to what came of it."""
    (requests,) = measure("chat/completions", row={"tools": json.dumps([TOOL])})
    assert not requests["errored"] and not requests["incomplete"]
    called = [one["tool_calls"] for one in requests["successful"] if one["tool_calls"]]
    assert len(called) == REQUESTS / 2
    for (call,) in called:
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    rest = [one["output"] for one in requests["successful"] if not one["tool_calls"]]
    assert len(rest) == REQUESTS / 2 and all(rest)


def test_completion(measure: Any) -> None:
    (requests,) = measure("completions")
    answered(requests)


def test_embeddings(measure: Any) -> None:
    (requests,) = measure("embeddings", backend={"stream": False})
    assert len(requests["successful"]) == REQUESTS
    assert all(one["prompt_tokens"] > 4 for one in requests["successful"])


def test_errors(measure: Any) -> None:
    (requests,) = measure("completions", model="nobody")
    assert not requests["successful"] and len(requests["errored"]) == REQUESTS
    assert all("404" in one["info"]["error"] for one in requests["errored"])


def test_sweep(measure: Any) -> None:
    """One after the other, all at once, and at rates between the two."""
    first, *others = measure("completions", ADAPTER, "sweep", profile_with={"sweep_size": 3})
    answered(first)
    assert len(others) == 2
    for requests in others:
        # Its workers may end before it has counted their last answers.
        answered(requests, least=1)


def test_responses(measure: Any) -> None:
    (requests,) = measure("responses", ADAPTER)
    answered(requests)
