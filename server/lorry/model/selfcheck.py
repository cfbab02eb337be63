"""At start-up: do sequences that run together get the answers they would get alone?

A list of architectures that work would be wrong the day transformers changes one. So the
model is asked, twice:

- Sequences run together, in pieces and token by token, on the path that will serve, and
  each alone through transformers' own forward pass (`lorry.model.trial`).
- The same on a copy whose windows, chunks and other such lengths are cut down so far that
  the sequences go beyond them (`lorry.model.limits`).

Where the two differ in one packed row they are padded from then on, and where they differ
padded the model is refused by name instead of being served wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lorry.errors import ModelError, UnsupportedModel
from lorry.model.limits import limits_of, shortened
from lorry.model.loader import LoadedModel
from lorry.model.padded import UNSUITED
from lorry.model.runner import Runner
from lorry.model.survey import survey_padded
from lorry.model.trial import Trial

SHORT = Trial(lengths=(13, 6), piece=6)
"""For the model itself, whole."""

LONG = Trial(lengths=(43, 26, 6), piece=9)
"""For the copy: more than twice the lengths of `lorry.model.limits`, and pieces that end on
either side of them."""

LONGEST = 1024
"""Tokens that a sequence may have where a length could not be cut down."""

BLOCK_SIZE = 4

MAX_TOKENS = max(sum(trial.lengths) for trial in (SHORT, LONG))
"""Of one step at most."""

Equip = Callable[[LoadedModel, Runner], object]
"""Gives a runner the kernels that the server's own has."""


def check(runner: Runner, loaded: LoadedModel, equip: Equip | None = None) -> None:
    """Run before the first request: it writes to the cache's first blocks, and may give the
    runner another cache.

    `equip`: None for PyTorch's operations.

    Raises:
        UnsupportedModel: together and alone differ on every path that there is.
    """
    problem = _problem(runner, loaded, equip)
    if problem is None:
        return
    if runner.path == "torch" and runner.unpackable is None:
        runner.go_padded(loaded, problem)
        if runner.cache.num_blocks < SHORT.blocks_needed(runner.cache.block_size):
            raise ModelError(
                "--kv-cache-memory is too small for this model's padded rows; give more"
            )
        problem = _problem(runner, loaded, equip)
        if problem is None:
            return
    if runner.unpackable is not None:
        problem = f"packed in one row, {runner.unpackable}; padded, {problem}"
    raise UnsupportedModel(f"{loaded.layout.architecture} is not served: {problem}")


def _problem(runner: Runner, loaded: LoadedModel, equip: Equip | None) -> str | None:
    """What is wrong with the answers on the runner's paths, if anything."""
    problem = SHORT.problem(runner, loaded)
    if problem is not None:
        return problem
    beyond = _beyond_limits(loaded)
    problem = _on_copy(runner, beyond, None)
    if problem is None and runner.path == "native":
        # Beside it, rows run packed too.
        problem = _on_copy(runner, beyond, equip)
    return problem


@dataclass(frozen=True, slots=True)
class _Beyond:
    """A copy with short lengths, and sequences that go beyond them."""

    copy: LoadedModel
    trial: Trial
    alone: list[list[float]] | None
    """The copy's answers, where they are known."""


def _on_copy(runner: Runner, beyond: _Beyond, equip: Equip | None) -> str | None:
    copy, trial = beyond.copy, beyond.trial
    found = None if runner.unpackable is None else survey_padded(copy, runner.unpackable)
    other = Runner(
        copy,
        kv_blocks=trial.blocks_needed(BLOCK_SIZE),
        block_size=BLOCK_SIZE,
        max_slots=1,
        max_rank=1,
        kv_dtype=runner.cache.dtype,
        found=found,
    )
    try:
        if equip is not None:
            equip(copy, other)
        return trial.problem(other, copy, beyond.alone)
    finally:
        other.close()


def _beyond_limits(loaded: LoadedModel) -> _Beyond:
    copy, answers = _first_layers(loaded, limits=True)
    limits = [limit for limit in limits_of(loaded).values() if limit <= LONGEST]
    if not limits or answers != _first_layers(loaded, limits=False)[1]:
        return _Beyond(copy, LONG, answers)
    # Some models make tables of a length when they are made.
    first, *others = LONG.lengths
    lengths = (max(limits) + first, *others)
    return _Beyond(copy, replace(LONG, lengths=lengths, piece=max(limits) // 2 + 1), None)


def _first_layers(loaded: LoadedModel, *, limits: bool) -> tuple[LoadedModel, list[list[float]]]:
    """A copy, of as few layers as can be run by themselves, and its answers."""
    copy = shortened(loaded, limits=limits)
    sequences = LONG.sequences(loaded)
    try:
        return copy, LONG.alone(copy, sequences)
    except torch.OutOfMemoryError:
        raise
    except UNSUITED:
        # Something in it counts on all of its layers.
        copy = shortened(loaded, limits=limits, layers=False)
        return copy, LONG.alone(copy, sequences)
