"""No test depends on how fast the machine is: what reads a clock, sleeps or sets a limit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.patience import PATIENCE

TESTS = Path(__file__).resolve().parents[2]

ALLOWED = {
    ("support/patience.py", "time.monotonic"): "the one limit",
    ("support/patience.py", "time.sleep"): "between two looks",
    ("support/patience.py", "httpx.Client"): "the one client",
    ("support/crashes.py", "time.sleep"): "a kill at a random moment; nothing waits for it",
    ("support/shared_crashes.py", "time.monotonic"): "told by `make crash`, and not checked",
    (
        "support/storm.py",
        "time.monotonic",
    ): "the order of what happened, and the end of `make storm`",
    ("support/storm.py", "time.sleep"): "an operator's pauses; nothing waits for them",
    ("support/history.py", "time.monotonic"): "the order of what happened, not how long it took",
    ("support/history.py", "time.sleep"): "an operator's pauses; nothing waits for them",
    ("e2e/test_hot_life.py", "time.monotonic"): "the order of what happened",
    ("api/test_hostile_requests.py", "answered.wait(0.05)"): "the pace of a client that drips",
    ("support/matrix_bench.py", "go.wait(0.0005)"): "between two looks",
    ("unit/api/test_prompts.py", "asyncio.sleep(0.001)"): "between two looks",
}
"""File and what it does, with the reason."""

MEASURES = {"support/hostile.py"}
"""Is run by hand, to measure."""

CLOCKS = {f"time.{name}" for name in ("sleep", "time", "monotonic", "perf_counter", "process_time")}
CLOCKS |= {"asyncio.timeout", "pytest.mark.timeout"}
LIBRARY = {f"httpx.{name}" for name in ("get", "post", "put", "patch", "delete", "head", "options")}
LIBRARY |= {f"httpx.{name}" for name in ("request", "stream", "Client", "AsyncClient")}
"""With five seconds of patience where they are told nothing else."""

WAITS = {"wait", "join", "result", "communicate", "acquire", "wait_for", "get", "settimeout"}
LIMITS = {"timeout", "deadline"}


def impatient(source: str) -> Iterator[str]:
    """What of a file depends on the machine's speed, as its source has it.

    A number of seconds counts where it is above zero (zero is a look, not a wait) and below
    `PATIENCE`.
    """

    def short(node: ast.expr) -> bool:
        value = node.value if isinstance(node, ast.Constant) else None
        return type(value) in (int, float) and 0 < value < PATIENCE

    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in CLOCKS - {"asyncio.timeout"} or name in LIBRARY:
            yield name
        elif (
            any(word.arg in LIMITS and short(word.value) for word in node.keywords)
            or (name.rpartition(".")[2] in WAITS and any(map(short, node.args)))
            or (name == "asyncio.timeout" and any(map(short, node.args)))
            or (name.rpartition(".")[2] == "sleep" and any(map(short, node.args)))
        ):
            yield ast.unparse(node)


def test_no_test_depends_on_the_speed_of_the_machine() -> None:
    found = {
        (str(file.relative_to(TESTS)), what)
        for file in TESTS.rglob("*.py")
        if str(file.relative_to(TESTS)) not in MEASURES
        for what in impatient(file.read_text())
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "source",
    [
        "httpx.get(url)",
        "httpx.Client(base_url=url, timeout=60)",
        "time.sleep(1)",
        "thread.join(30)",
        "done.wait(timeout=2.5)",
        "asyncio.timeout(5)",
        "await asyncio.sleep(0.1)",
        "await asyncio.wait_for(test(), 20)",
        "settings(deadline=200)",
        "pytest.mark.timeout(300)",
    ],
)
def test_what_depends_on_it_is_seen(source: str) -> None:
    assert len(list(impatient(f"async def test():\n    {source}\n"))) == 1


@pytest.mark.parametrize(
    "source",
    ["thread.join()", "wait(PATIENCE)", "drain(0)", "await asyncio.sleep(0)", "', '.join(names)"],
)
def test_what_does_not_is_let_alone(source: str) -> None:
    assert not list(impatient(f"async def test():\n    {source}\n"))
