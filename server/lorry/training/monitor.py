"""What a run tells while it runs, and when it has to stop: a loss that is no number any more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerCallback


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The state of a run after a step."""

    step: int
    steps: int
    loss: float | None
    """Of the steps since the last report; None in a validation's report."""
    validation_loss: float | None
    learning_rate: float | None
    tokens_per_second: float
    """All tokens of the sequences, padding left out."""
    seconds_left: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Tell = Callable[[TrainingProgress], None]


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Reports through `tell`, keeps the curve, and stops the run before a bad checkpoint."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._started = 0.0
        self._first = 0
        self.tokens = 0
        """Tokens that were put into batches."""
        self.curve: list[TrainingProgress] = []
        self.failed_at: int | None = None
        """The step whose loss was no number."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._started, self._first = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any
    ) -> None:
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            self.failed_at = state.global_step
            control.should_training_stop = True
            # The weights are spoilt: the checkpoint before them is the one to keep.
            control.should_save = False
            control.should_evaluate = False
            return
        spent = max(time.monotonic() - self._started, 1e-9)
        done = max(state.global_step - self._first, 1)
        progress = TrainingProgress(
            step=state.global_step,
            steps=state.max_steps,
            loss=None if loss is None else float(loss),
            validation_loss=logs.get("eval_loss"),
            learning_rate=logs.get("learning_rate"),
            tokens_per_second=self.tokens / spent,
            seconds_left=spent / done * (state.max_steps - state.global_step),
        )
        self.curve.append(progress)
        self._tell(progress)
