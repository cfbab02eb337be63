"""Which clients there are, what is tried with each, and the versions that are pinned.

A client's tests are one file, and its row of the table. What a test tries is its name:
`test_stream_usage` is of the column `stream`, and a name that begins with no column's goes to
the last one as it is. Nothing here imports a client: the files are read as text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

FEATURES: Mapping[str, str] = {
    "chat": "Chat",
    "stream": "Streams",
    "async": "Async",
    "tools": "Tools",
    "schema": "Structured output",
    "adapter": "Adapter",
    "completion": "Completion",
    "embeddings": "Embeddings",
    "errors": "Errors",
}
"""How a test's name begins, and the head of its column."""


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    """In the table."""
    package: str
    """As PyPI or npm calls it; the group pins its version."""
    file: str
    """Its tests, below this folder. The folder of the file is the group."""

    @property
    def group(self) -> str:
        return self.file.partition("/")[0]

    @property
    def version(self) -> str:
        return pins(self.group)[self.package]

    @property
    def source(self) -> str:
        return (HERE / self.file).read_text()


CLIENTS = (
    Client("openai", "openai", "sdks/test_openai.py"),
    Client("anthropic", "anthropic", "sdks/test_anthropic.py"),
    Client("huggingface_hub", "huggingface-hub", "sdks/test_hub.py"),
    Client("text-generation", "text-generation", "tgi/test_text_generation.py"),
    Client("lorax-client", "lorax-client", "tgi/test_lorax.py"),
    Client("langchain-openai", "langchain-openai", "frameworks/test_langchain.py"),
    Client("pydantic-ai", "pydantic-ai-slim", "frameworks/test_pydantic_ai.py"),
    Client("openai-agents", "openai-agents", "frameworks/test_openai_agents.py"),
    Client("llm", "llm", "frameworks/test_llm.py"),
    Client("outlines", "outlines", "frameworks/test_outlines.py"),
    Client("litellm", "litellm", "wrappers/test_litellm.py"),
    Client("instructor", "instructor", "wrappers/test_instructor.py"),
    Client("llama-index", "llama-index-llms-openai-like", "wrappers/test_llama_index.py"),
    Client("openai (JavaScript)", "openai", "node/test_openai.mjs"),
    Client("ai (Vercel)", "ai", "node/test_ai.mjs"),
    Client("schemathesis", "schemathesis", "contract/test_schemathesis.py"),
    Client("lm-eval", "lm-eval", "evals/test_lm_eval.py"),
    Client("guidellm", "guidellm", "load/test_guidellm.py"),
)

QUICK = "sdks"
"""The group that `make test` runs."""


def groups() -> tuple[str, ...]:
    """Clients of one group share an environment: their dependencies agree."""
    return tuple(dict.fromkeys(client.group for client in CLIENTS))


def pins(group: str) -> dict[str, str]:
    """What the group asks for, and the one version of each."""
    folder = HERE / group
    if (package := folder / "package.json").exists():
        return dict(json.loads(package.read_text())["dependencies"])
    lines = (folder / "requirements.txt").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*?\])?==(\S+)", line) for line in lines)
    return {pin[1]: pin[2] for pin in found if pin is not None}


def tried(client: Client) -> dict[str, str | None]:
    """The tests of the client without `test_`, in their order; with each the reason why it
    cannot pass, or None where it must."""
    if client.file.endswith(".mjs"):
        return dict(_node_tests(client.source))
    return dict(_python_tests(client.source))


def feature(test: str) -> str | None:
    """The column that a test belongs to; None is the last one."""
    return next((name for name in FEATURES if re.match(rf"{name}(_|$)", test)), None)


def _python_tests(source: str) -> Iterator[tuple[str, str | None]]:
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        reason = None
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.xfail":
                (reason,) = (ast.literal_eval(w.value) for w in mark.keywords if w.arg == "reason")
        yield node.name.removeprefix("test_"), reason


def _node_tests(source: str) -> Iterator[tuple[str, str | None]]:
    for found in re.finditer(r'^test\("(\w+)"', source, re.MULTILINE):
        yield found[1], None
