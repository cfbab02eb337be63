"""Every setting of a training run, its defaults, and the presets.

The learning rate follows *LoRA Without Regret* (Thinking Machines, 2025): 2e-4 for a hidden size of
2000 and more, and (2000 / hidden) ** 0.781 times that for smaller bases.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from lorry.errors import SettingsError

ALL_LINEAR = "all-linear"


class TrainingMethod(StrEnum):
    LORA = "lora"
    RSLORA = "rslora"
    DORA = "dora"
    IA3 = "ia3"
    PROMPT = "prompt"


_FASTER = {TrainingMethod.IA3: 20.0, TrainingMethod.PROMPT: 40.0}
"""Few numbers learn at a higher rate."""


class Schedule(StrEnum):
    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Preset(StrEnum):
    QUICK = "quick"
    """To see within minutes whether the data does what was hoped."""
    GENERAL = "general"
    COMPLEX = "complex"
    """A task that needs a larger change: more rank, gentler steps."""
    LARGE_DATA = "large-data"
    """Ten thousand examples and more: large batches, once through."""


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """The settings of a run; a run with the same recipe and data writes the same bytes."""

    method: TrainingMethod = TrainingMethod.LORA
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    virtual_tokens: int = 16
    """Of prompt tuning."""
    quantize: str = "none"
    """none, int8 or nf4 (QLoRA)."""
    epochs: float = 3.0
    steps: int | None = None
    """Instead of epochs."""
    learning_rate: float = 2e-4
    schedule: Schedule = Schedule.COSINE
    warm_up: float = 0.03
    """Share of the steps."""
    weight_decay: float = 0.0
    batch: int = 8
    """Sequences of a step."""
    accumulation: int = 1
    """Parts in which a step's sequences are computed, so that less memory is needed."""
    max_length: int = 2048
    checkpointing: bool = False
    """Recomputes activations instead of keeping them: less memory, more time."""
    patience: int | None = None
    """Validations without a gain before the run stops."""
    seed: int = 0
    form: str = "auto"
    """auto, or one of `rendering.PairForm`."""

    def __post_init__(self) -> None:
        """Raises SettingsError naming the flag."""
        for name in ("rank", "alpha", "virtual_tokens", "batch", "accumulation", "max_length"):
            _require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            _require(name, math.isfinite(value) and value > 0, "a number above 0")
        _require("steps", self.steps is None or self.steps >= 1, "at least 1")
        _require("patience", self.patience is None or self.patience >= 1, "at least 1")
        _require("dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        _require("warm_up", 0 <= self.warm_up < 1, "a share of the steps, from 0 to below 1")
        forms = ("auto", "chat", "raw", "mixed")
        _require("form", self.form in forms, f"one of {', '.join(forms)}")
        _require("quantize", self.quantize in ("none", "int8", "nf4"), "none, int8 or nf4")
        _require("batch", self.batch % self.accumulation == 0, "a multiple of --accumulation")

    @classmethod
    def chosen(
        cls, examples: int, hidden: int, preset: Preset = Preset.GENERAL, **given: Any
    ) -> Self:
        """Return the preset's recipe for so many examples and that hidden size; `given` wins."""
        rank, learning, batch, most_epochs = {
            Preset.QUICK: (8, 1.0, 8, 2.0),
            Preset.GENERAL: (16, 1.0, 8, 10.0),
            Preset.COMPLEX: (64, 0.5, 8, 10.0),
            Preset.LARGE_DATA: (32, 0.5, 32, 1.0),
        }[preset]
        method = given.get("method", TrainingMethod.LORA)
        batch = min(given.get("batch", batch), max(1, examples))
        rate = learning * 2e-4 * max(1.0, 2000 / hidden) ** 0.781
        values: dict[str, Any] = {
            "rank": rank,
            "learning_rate": rate
            * {TrainingMethod.IA3: 20.0, TrainingMethod.PROMPT: 40.0}.get(method, 1.0),
            "batch": batch,
            # About 200 steps, where the data is small.
            "epochs": min(most_epochs, max(1.0, round(200 * batch / max(1, examples)))),
        }
        values |= given
        values.setdefault(
            "alpha", values["rank"] if method is TrainingMethod.RSLORA else 2 * values["rank"]
        )
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        values = {**asdict(self), "targets": list(self.targets)}
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in values.items()}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Return the settings that differ from those in `other`, as `rank 16, was 8`."""
        own = self.as_json()
        return [
            f"{field.name} {own[field.name]}, was {other.get(field.name)}"
            for field in fields(self)
            if own[field.name] != other.get(field.name)
        ]


def _require(name: str, fits: bool, what: str) -> None:
    if not fits:
        raise SettingsError(f"--{name.replace('_', '-')} must be {what}")
