"""Where it must get to: goal, what was measured, a peer's figure of the same hour, the ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorry.bench import preset

RESIDENT_BUDGET = 600 << 20
"""Bytes that a server may hold beside its base before anybody asks: Python, PyTorch and the
libraries with their code (480 MiB, imported and idle), and its own buffers."""

BASE_PARTS = ("quantized_linears", "linears", "embeddings", "output_head", "other")

RESIDENT_GROWTH = 0.02
"""Share by which memory may differ between the first and the last quarter and count as flat."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; texts are ready to print."""

    what: str
    goal: str
    measured: str
    peer: str
    ratio: str
    reached: bool | None
    """None where what it takes was not measured."""

    @property
    def cells(self) -> tuple[str, ...]:
        verdict = {True: "yes", False: "no", None: "-"}[self.reached]
        return (self.what, self.goal, self.measured, self.peer, self.ratio, verdict)


COLUMNS = ("", "goal", "measured", "peer", "ratio", "reached")


def lines(results: Mapping[str, Any]) -> list[Line]:
    """`results` as `benchmarks.__main__` collects them; what is missing is shown as such."""
    ours = _rows(results.get("lorry"))
    peft = (results.get("peft") or {}).get("rows", {})
    peers = {name: _rows(found) for name, found in (results.get("peers") or {}).items()}
    llama, vllm = _like(peers, "llama"), _like(peers, "vllm")

    found = [
        _against(preset.DISTINCT, ours, 12, "PEFT nf4, mixed batch", peft.get("nf4", {})),
        _against(preset.DISTINCT, ours, None, "PEFT fp32, mixed batch", peft.get("fp32", {})),
        _against(preset.ADAPTER_EIGHT, ours, None, "PEFT nf4", peft.get("nf4", {})),
        _against(preset.BASE_EIGHT, ours, None, "PEFT nf4", peft.get("nf4", {})),
        _against(preset.DISTINCT, ours, 3, "llama.cpp server", llama),
        _against(preset.DISTINCT, ours, 4.5, "vLLM on CPU", vllm),
        _against(preset.BASE_EIGHT, ours, 1.2, "llama.cpp server", llama),
        _against(preset.BASE_ONE, ours, 1.0, "llama.cpp server", llama),
        _among(ours, preset.DISTINCT, preset.ADAPTER_EIGHT, 0.9, "one adapter"),
        _among(ours, preset.ADAPTER_EIGHT, preset.BASE_EIGHT, 0.85, "none"),
        _among(ours, preset.SLOTS, preset.RESIDENT, 0.8, "64 slots"),
        _wait(ours, llama),
        *_hot(results.get("hot_load")),
        _start(results.get("lorry") or results.get("memory")),
        _memory(results.get("memory")),
    ]
    return found


def _against(row: str, ours: Any, goal: float | None, peer: str, theirs: Any) -> Line:
    mine, other = _rate(ours, row), _rate(theirs, row)
    ratio = None if mine is None or not other else mine / other
    return Line(
        what=f"{row}, against {peer}",
        goal="-" if goal is None else f"{goal:g}x",
        measured=_per_second(mine),
        peer=_per_second(other),
        ratio=_times(ratio),
        reached=None if ratio is None or goal is None else ratio >= goal,
    )


def _among(ours: Any, row: str, other: str, goal: float, short: str) -> Line:
    mine, theirs = _rate(ours, row), _rate(ours, other)
    ratio = None if mine is None or not theirs else mine / theirs
    return Line(
        what=f"{row}, against {short}",
        goal=f"{goal:g}",
        measured=_per_second(mine),
        peer=_per_second(theirs),
        ratio=_times(ratio),
        reached=None if ratio is None else ratio >= goal,
    )


def _wait(ours: Any, llama: Any) -> Line:
    mine, theirs = _first(ours, preset.DISTINCT), _first(llama, preset.DISTINCT)
    ratio = None if mine is None or not theirs else mine / theirs
    return Line(
        what=f"first token p50, {preset.DISTINCT}, against llama.cpp server",
        goal="0.5x",
        measured=_ms(mine),
        peer=_ms(theirs),
        ratio=_times(ratio),
        reached=None if ratio is None else ratio <= 0.5,
    )


def _hot(found: Any) -> list[Line]:
    soon, pause = "upload of an adapter to its first token", "longest pause of the others meanwhile"
    if not found:
        return [
            Line(soon, "250 ms more than warm", "-", "-", "-", None),
            Line(pause, "one step", "-", "-", "-", None),
        ]
    middle = found["median"]
    more = middle["cold"] - middle["warm"]
    return [
        Line(
            soon,
            "250 ms more than warm",
            _ms(middle["cold"]),
            f"warm: {_ms(middle['warm'])}",
            f"{more * 1000:+.0f} ms",
            more < 0.25,
        ),
        Line(
            pause,
            "one step, as when warm",
            _ms(middle["cold_pause"]),
            f"warm: {_ms(middle['warm_pause'])}",
            _times(middle["cold_pause"] / middle["warm_pause"]),
            # A step more or less is what a clock from outside can see.
            middle["cold_pause"] <= middle["warm_pause"] + middle["usual_pause"],
        ),
    ]


def _start(found: Any) -> Line:
    what, goal = "memory of an idle server", f"its base and {_mib(RESIDENT_BUDGET)}"
    server = (found or {}).get("server", {})
    if "resident_at_start" not in server:
        return Line(what, goal, "-", "-", "-", None)
    held = server["resident_at_start"]
    base = sum(server["memory"][part] for part in BASE_PARTS)
    more = held - base
    peer = f"base, quantized: {_mib(base)}"
    return Line(what, goal, _mib(held), peer, f"+{_mib(more)}", more <= RESIDENT_BUDGET)


def _memory(found: Any) -> Line:
    samples = found["rows"][0].get("server_memory") if found else None
    if not samples or len(samples) < 3:
        return Line("memory after many requests", "flat", "-", "-", "-", None)
    figures = found["rows"][0]["figures"]
    # The first repeat fills every buffer to its size; growth is what comes after.
    first, last = samples[1], samples[-1]
    return Line(
        what=f"memory after {figures['requests']} requests",
        goal="flat",
        measured=_mib(last),
        peer=f"after the first {figures['requests'] // (len(samples) - 1)}: {_mib(first)}",
        ratio=_times(last / first),
        reached=last <= first * (1 + RESIDENT_GROWTH) and not figures["errors"],
    )


def _rows(document: Any) -> dict[str, Any]:
    if not document:
        return {}
    return {row["name"]: row["figures"] for row in document["rows"]}


def _like(peers: Mapping[str, Any], word: str) -> Any:
    return next((rows for name, rows in peers.items() if word in name.lower()), {})


def _rate(rows: Any, name: str) -> float | None:
    return rows[name]["tokens_per_second"] if name in rows else None


def _first(rows: Any, name: str) -> float | None:
    return rows[name]["first_token"]["p50"] if name in rows else None


def _per_second(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} tokens/s"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms"


def _mib(value: float) -> str:
    return f"{value / (1 << 20):.0f} MiB"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
