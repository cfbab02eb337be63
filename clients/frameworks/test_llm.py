"""Simon Willison's `llm`, on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

PROMPT = "How do I cook rice?"
SHORT = ("-o", "temperature", "0", "-o", "max_tokens", "12")


@pytest.fixture(scope="module")
def llm(v1: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`llm(…)`: what it says, with the server's models in its `extra-openai-models.yaml`."""
    home = tmp_path_factory.mktemp("llm")
    models: list[dict[str, Any]] = [
        {"model_id": name, "model_name": name, "api_base": v1, "api_key_name": "lorry"}
        for name in ("smollm2-135m", "pirate", "nobody")
    ]
    for model in models:
        model |= {"supports_tools": True, "supports_schema": True}
    done = {"model_id": "text", "model_name": "smollm2-135m", "api_base": v1, "completion": True}
    (home / "extra-openai-models.yaml").write_text(json.dumps([*models, done]))
    (home / "keys.json").write_text('{"lorry": "none", "openai": "none"}')

    def run(*words: str, status: int = 0, program: str = "") -> str:
        what = ["-c", program] if program else ["-m", "llm", *words]
        command = [sys.executable, *what]
        environ = {**os.environ, "LLM_USER_PATH": str(home)}
        done = subprocess.run(
            command, env=environ, input="", capture_output=True, text=True, check=False, cwd=home
        )
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    return run


def test_chat(llm: Any) -> None:
    assert llm("-m", "smollm2-135m", "--no-stream", *SHORT, PROMPT).strip()
    more = llm("-c", *SHORT, "And tea?")
    assert more.strip()


def test_stream(llm: Any) -> None:
    whole = llm("-m", "smollm2-135m", "--no-stream", *SHORT, PROMPT)
    assert llm("-m", "smollm2-135m", *SHORT, PROMPT) == whole


def test_tools(llm: Any) -> None:
    # `llm` cannot force a call: the model is free, and what it says or calls is read.
    program = f"""
import llm

def forecast(days: int) -> str:
    "Says what the weather will be."
    return "rain"

model = llm.get_model("smollm2-135m")
answer = model.prompt({PROMPT!r}, tools=[forecast], temperature=0, max_tokens=40, stream=False)
print(answer.text() or answer.tool_calls())
"""
    assert llm(program=program).strip()


def test_schema(llm: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"days": {"enum": [1, 2]}},
        "required": ["days"],
        "additionalProperties": False,
    }
    long = ("-o", "temperature", "0", "-o", "max_tokens", "200")
    assert json.loads(llm("-m", "smollm2-135m", "--schema", json.dumps(schema), *long, PROMPT))[
        "days"
    ] in (1, 2)


def test_adapter(llm: Any) -> None:
    assert llm("-m", "pirate", *SHORT, PROMPT) != llm("-m", "smollm2-135m", *SHORT, PROMPT)


def test_completion(llm: Any) -> None:
    assert llm("-m", "text", *SHORT, "Rice is").strip()


def test_errors(llm: Any) -> None:
    assert "nobody" in llm("-m", "nobody", *SHORT, PROMPT, status=1)
