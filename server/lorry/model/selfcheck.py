"""At start-up: do sequences that run together get the answers they would get alone?

A list of architectures that work would be wrong the day transformers changes one. So the
model is asked, twice:

- Sequences run together, in pieces and token by token, on the path that will serve, and
  each alone through transformers' own forward pass (`lorry.model.trial`).
- The same on a copy whose windows, chunks and other such lengths are cut down so far that
  the sequences go beyond them (`lorry.model.length_limits`).

It says only whether they agree; `lorry.model.paths` decides what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from lorry.model.base_loader import LoadedModel
from lorry.model.executor import Executor
from lorry.model.length_limits import limits_of, shortened
from lorry.model.padded import UNSUITED
from lorry.model.trial import Noise, Trial

SHORT = Trial(lengths=(13, 6), piece=6)
"""For the model itself, whole."""

LONG = Trial(lengths=(43, 26, 6), piece=9)
"""For the copy: more than twice the lengths of `lorry.model.length_limits`, and pieces that end on
either side of them."""

LONGEST = 1024
"""Tokens that a sequence may have where a length could not be cut down."""

BLOCK_SIZE = 4

MAX_TOKENS = max(sum(trial.lengths) for trial in (SHORT, LONG))
"""Of one step at most."""

BuildCopy: TypeAlias = Callable[[LoadedModel, int], Executor]
"""Builds paths of a copy of the model, with a cache of so many blocks of `BLOCK_SIZE` tokens."""


def problem(
    executor: Executor,
    loaded: LoadedModel,
    build_copies: Sequence[BuildCopy],
    noise: Noise | None = None,
) -> str | None:
    """What is wrong with the answers on the paths of `executor`, or with those of one of the
    copies; None where together and alone agree. Before the first request: it writes to the cache's
    first blocks.

    `build_copies`: one for each kind of path whose windows and chunks are to be seen at work.
    `noise`: of `SHORT`, as `Trial.problem` says.
    """
    found = SHORT.problem(executor, loaded, noise=noise)
    if found is not None or not build_copies:
        return found
    beyond = _beyond_limits(loaded)
    for build_copy in build_copies:
        found = _on_copy(build_copy, beyond)
        if found is not None:
            return found
    return None


@dataclass(frozen=True, slots=True)
class _Beyond:
    """A copy with short lengths, and sequences that go beyond them."""

    copy: LoadedModel
    trial: Trial
    alone: list[list[float]] | None
    """The copy's answers, where they are known."""


def _on_copy(build_copy: BuildCopy, beyond: _Beyond) -> str | None:
    copy, trial = beyond.copy, beyond.trial
    executor = build_copy(copy, trial.blocks_needed(BLOCK_SIZE))
    try:
        return trial.problem(executor, copy, beyond.alone)
    finally:
        executor.paths.close()


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
