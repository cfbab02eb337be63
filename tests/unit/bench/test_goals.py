"""The goals' table: what was measured is judged, what was not is said to be missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lorry.bench import preset

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def goals() -> Any:
    spec = importlib.util.spec_from_file_location("goals", ROOT / "benchmarks/goals.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Dataclasses look their module up there.
        patch.setitem(__import__("sys").modules, "goals", module)
        spec.loader.exec_module(module)
    return module


def document(first_token: float = 1.0, **rates: float) -> dict[str, Any]:
    names = {
        "base_one": preset.BASE_ONE,
        "base": preset.BASE_EIGHT,
        "one": preset.ADAPTER_EIGHT,
        "eight": preset.DISTINCT,
        "slots": preset.SLOTS,
        "resident": preset.RESIDENT,
    }
    return {
        "rows": [
            {
                "name": names[key],
                "figures": {"tokens_per_second": rate, "first_token": {"p50": first_token}},
            }
            for key, rate in rates.items()
        ]
    }


def verdicts(goals: Any, results: dict[str, Any]) -> dict[str, bool | None]:
    return {line.what: line.reached for line in goals.lines(results)}


def test_nothing_measured_is_nothing_reached(goals: Any) -> None:
    assert set(verdicts(goals, {}).values()) == {None}


def test_each_goal_is_held_against_its_own_bound(goals: Any) -> None:
    ours = document(0.9, base_one=80, base=150, one=130, eight=117, slots=79, resident=100)
    results = {
        "lorry": ours,
        "peft": {"rows": {"nf4": {preset.DISTINCT: {"tokens_per_second": 9.75}}}},
        "peers": {"llama.cpp Q8_0": document(2.0, base_one=81, base=120, eight=39)},
    }
    found = verdicts(goals, results)
    eight = preset.DISTINCT
    assert found[f"{eight}, against PEFT nf4, mixed batch"] is True  # 12.0
    assert found[f"{eight}, against llama.cpp server"] is True  # 3.0
    assert found[f"{eight}, against vLLM on CPU"] is None
    assert found[f"{preset.BASE_EIGHT}, against llama.cpp server"] is True  # 1.25
    assert found[f"{preset.BASE_ONE}, against llama.cpp server"] is False  # 0.99
    assert found[f"{eight}, against one adapter"] is True  # 0.9
    assert found[f"{preset.ADAPTER_EIGHT}, against none"] is True  # 0.87
    assert found[f"{preset.SLOTS}, against 64 slots"] is False  # 0.79
    assert found[f"first token p50, {eight}, against llama.cpp server"] is True  # 0.45


@pytest.mark.parametrize(
    ("memory", "errors", "flat"),
    [
        ([100, 400, 401, 402, 403], 0, True),
        ([100, 400, 410, 420, 430], 0, False),
        ([400, 400, 400, 400, 400], 1, False),
    ],
)
def test_memory_counts_from_the_first_repeat_on(
    goals: Any, memory: list[int], errors: int, flat: bool
) -> None:
    figures = {"requests": 2000, "errors": errors}
    results = {"memory": {"rows": [{"server_memory": memory, "figures": figures}]}}
    assert verdicts(goals, results)["memory after 2000 requests"] is flat


@pytest.mark.parametrize(
    ("cold", "pause", "reached"), [(0.3, 0.02, (True, True)), (0.31, 0.06, (False, False))]
)
def test_loading_is_held_against_a_warm_request(
    goals: Any, cold: float, pause: float, reached: tuple[bool, bool]
) -> None:
    median = {"cold": cold, "warm": 0.055, "cold_pause": pause, "warm_pause": 0.03}
    results = {"hot_load": {"median": {**median, "usual_pause": 0.015}}}
    lines = goals.lines(results)
    found = [line.reached for line in lines if "upload" in line.what or "pause" in line.what]
    assert found == list(reached)


@pytest.mark.parametrize(("beside", "reached"), [(500, True), (601, False)])
def test_an_idle_server_is_its_base_and_a_budget(goals: Any, beside: int, reached: bool) -> None:
    parts = dict.fromkeys(goals.BASE_PARTS, 50 << 20)
    server = {"memory": {**parts, "kv_cache": 2 << 30}, "resident_at_start": 250 + beside << 20}
    results = {"lorry": {**document(eight=1.0), "server": server}}
    assert verdicts(goals, results)["memory of an idle server"] is reached
