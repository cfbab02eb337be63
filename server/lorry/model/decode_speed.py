"""How long one token takes on the compiled step, beside the time it takes to read the weights.

A step of one token multiplies each weight once, and of a mixture those of the chosen experts. So it
can be no faster than the memory gives these. Both times are taken at start-up, with the same
threads: of such steps, and of reading weights and doing nothing with them. The second over the
first is the share of the memory's bandwidth at which the base runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from lorry.core import Batch, Row, Sample, SamplingParams
from lorry.model.executor import Executor
from lorry.option import format_size

Result = TypeVar("Result")

LEAST = 64 << 20
"""Bytes of weights. Those of a smaller base may lie in the processor's caches."""

LONGEST = 0.2
"""Seconds. Where reading all weights takes longer, no step is run: the start would wait for it."""

BUDGET = 0.2
"""Seconds after which no further step starts."""

MOST = 5
"""Steps and readings that are timed. The quickest of each counts: in the others the machine may
have been busy with something else."""


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    nbytes: int
    """Bytes of the weights that a step reads."""
    bandwidth: float
    """Bytes a second that the step's threads got from memory, by reading or in a step."""
    seconds: float | None
    """Seconds of a step of one token. None if measuring it would have taken too long."""

    @property
    def share(self) -> float | None:
        """The share of the memory's bandwidth that such a step uses."""
        return None if self.seconds is None else self.nbytes / self.seconds / self.bandwidth

    @property
    def said(self) -> str:
        """For people."""
        size = format_size(self.nbytes)
        if self.seconds is None:
            return (
                f"one token takes {self.nbytes / self.bandwidth:.2f} s or more: {size}, and this "
                f"memory gives {self.bandwidth / 1e9:.1f} GB/s"
            )
        return (
            f"one token takes {1000 * self.seconds:.1f} ms: {size} at "
            f"{self.nbytes / self.seconds / 1e9:.1f} GB/s, {self.share:.2f} of what this memory "
            "gives"
        )


FIXED_TOKENS = 4.0
"""`fixed_tokens` where nobody has measured it."""

_FEW, _MANY = 1, 8
"""Tokens of the steps that are compared."""


def fixed_tokens(executor: Executor) -> float:
    """Measure how many tokens of a step take as long as what a step takes without any: reading the
    weights. A step of T tokens takes as long as this and T tokens. 1 to 64.

    Before the first request: it writes to the first block of the cache."""
    few, many = _quickest(executor, (_FEW, _MANY))
    each = max(many - few, 0.0) / (_MANY - _FEW)
    return min(max((few - _FEW * each) / each, 1.0), 64.0) if each else 64.0


def _quickest(executor: Executor, counts: Sequence[int]) -> list[float]:
    """Return the seconds of the quickest step of so many tokens each, measured in turn.

    On the compiled step it is processor time: what else the machine does would change a clock's
    seconds by more than the tokens do."""
    compiled = executor.paths.compiled is not None
    clock = time.process_time if compiled else time.perf_counter
    batches = [Batch((replace(_row(), token_ids=list(range(count))),)) for count in counts]
    found = [float("inf")] * len(batches)
    begun = time.perf_counter()
    for batch in batches:
        executor.run(batch)
    for turn in range(MOST):
        if turn and time.perf_counter() - begun > BUDGET * len(batches):
            break
        for place, batch in enumerate(batches):
            start = clock()
            executor.run(batch)
            found[place] = min(found[place], clock() - start)
    return found


def measured(executor: Executor) -> DecodeSpeed | None:
    """Before the first request: it writes to the first block of the cache. None where it would say
    little: without the compiled step, and where a token reads fewer bytes than `LEAST`."""
    compiled = executor.paths.compiled
    if compiled is None or compiled.token_bytes < LEAST:
        return None
    nbytes, batch = compiled.token_bytes, Batch((_row(),))
    begun = time.perf_counter()
    read, quickest = _timed(compiled.read_weights)
    if nbytes * quickest / read > LONGEST:
        return DecodeSpeed(nbytes, read / quickest, None)
    executor.run(batch)
    steps: list[float] = []
    while len(steps) < MOST and (not steps or time.perf_counter() - begun < BUDGET):
        quickest = min(quickest, _timed(compiled.read_weights)[1])
        steps.append(_timed(lambda: executor.run(batch))[1])
    return DecodeSpeed(nbytes, max(read / quickest, nbytes / min(steps)), min(steps))


def _timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result, and the seconds that it took."""
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _row() -> Row:
    """The first token of a sequence, and the next one drawn."""
    return Row(
        request_id="",
        token_ids=[0],
        start=0,
        blocks=[0],
        adapters=(),
        sample=Sample(SamplingParams(max_new_tokens=1), [0], (), None),
    )
