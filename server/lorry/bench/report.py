"""What was measured, as the rows of a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorry.bench.answers import Difference
from lorry.bench.figures import Figures, Spread
from lorry.bench.machine import Machine
from lorry.bench.session import Result
from lorry.errors import LorryError

FORMAT = 1
"""Of the JSON; a number more when a field changes its meaning."""

COLUMNS = (
    "",
    "tokens/s",
    "repeats",
    "first token ms",
    "per token ms",
    "answer s",
    "cached",
    "errors",
)

LEGEND = (
    "times are p50/p90/p99, every figure the median of the repeats; cached is the share of the "
    "prompts' tokens that the server did not compute"
)


_COMPARABLE = (
    "version",
    "model_id",
    "architecture",
    "quantization",
    "dtype",
    "device",
    "kernels",
    "max_loras",
    "max_lora_rank",
    "max_model_len",
    "memory",
)


class CannotWrite(LorryError):
    """The file for a report cannot be written."""


@dataclass(frozen=True, slots=True)
class Report:
    machine: Machine
    server: Mapping[str, Any]
    """API, and what the server says of itself."""
    results: Sequence[Result]
    checked: int | None = None
    """Answers that were compared; None where none were to be."""
    differences: Sequence[Difference] = field(default=())

    @property
    def server_line(self) -> str:
        """What was measured: the API, and the server's own words where it has some."""
        facts = self.server
        if facts["api"] != "lorry":
            return f"a server that speaks {facts['api']}"
        # An older server may say less of itself.
        named = ("version", "model_id", "quantization", "device", "kernels")
        version, model, quantization, device, kernels = (facts.get(name, "?") for name in named)
        return f"Lorry {version}, {model} in {quantization} on {device}, {kernels} kernels"

    def table(self) -> list[tuple[object, ...]]:
        """One tuple a row, in the order of COLUMNS."""
        return [_line(result.row.name, result.figures) for result in self.results]

    def as_json(self) -> dict[str, Any]:
        document = {
            "format": FORMAT,
            "machine": asdict(self.machine),
            "server": dict(self.server),
            "rows": [_row(result) for result in self.results],
        }
        if self.checked is not None:
            differences = [str(difference) for difference in self.differences]
            document["answers"] = {"checked": self.checked, "different": differences}
        cleaned: dict[str, Any] = _without_nan(document)
        return cleaned


def write(path: Path, text: str) -> None:
    """Raises CannotWrite."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror or error}") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Raises CannotWrite."""
    write(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def describe(info: Mapping[str, Any]) -> dict[str, Any]:
    """Of a Lorry server's `/info`, what makes figures comparable. No paths."""
    return {name: info[name] for name in _COMPARABLE if name in info}


def _line(name: str, figures: Figures) -> tuple[object, ...]:
    low, high = min(figures.throughputs), max(figures.throughputs)
    return (
        name,
        _number(figures.tokens_per_second, 1),
        f"{_number(low, 1)}-{_number(high, 1)}" if len(figures.throughputs) > 1 else "-",
        _spread(figures.first_token, 1000, 0),
        _spread(figures.per_token, 1000, 1),
        _spread(figures.end_to_end, 1, 2),
        "-" if math.isnan(figures.cached) else f"{figures.cached:.0%}",
        figures.errors,
    )


def _row(result: Result) -> dict[str, Any]:
    row = result.row
    document = {
        "name": row.name,
        "load": row.load,
        "adapters": row.adapters,
        "popularity": str(row.popularity) if row.adapters else None,
        "random_scales": row.random_scales,
        "prompt_words": str(row.prompt_words),
        "system_words": row.system_words,
        "turns": row.turns,
        "new_tokens": str(row.new_tokens),
        "requests": row.requests,
        "warm_up": row.warm_up,
        "figures": asdict(result.figures),
        "repeats": [asdict(one) for one in result.repeats],
    }
    if result.memory:
        document["server_memory"] = result.memory
    return document


def _spread(spread: Spread, factor: float, places: int) -> str:
    return "/".join(
        _number(value * factor, places) for value in (spread.p50, spread.p90, spread.p99)
    )


def _number(value: float, places: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; a figure of nothing is null."""
    match value:
        case float():
            return None if math.isnan(value) else round(value, 6)
        case dict():
            return {key: _without_nan(one) for key, one in value.items()}
        case list() | tuple():
            return [_without_nan(one) for one in value]
        case _:
            return value
