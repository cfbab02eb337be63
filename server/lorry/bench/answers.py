"""Were the answers right? Each greedy request once more, alone, and compared.

What a request is answered must not depend on what else was in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorry.bench.connection import Connections
from lorry.bench.load import LoadSample, OnDone, run
from lorry.bench.targets import Reading, Target
from lorry.bench.workload import Ask


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer under load that is not the answer alone."""

    ask: Ask
    loaded: Reading
    alone: Reading

    def __str__(self) -> str:
        about = "the base" if self.ask.adapter is None else f"adapter {self.ask.adapter}"
        if self.ask.scale != 1:
            about += f" at {self.ask.scale:g}"
        start = " ".join(self.ask.prompt.split()[:6])
        if self.alone.problem is not None:
            return f"{about}, {start!r} ...: alone, {self.alone.problem}"
        return (
            f"{about}, {start!r} ...: {_near(self.loaded, self.alone)!r} under load, "
            f"{_near(self.alone, self.loaded)!r} alone"
        )


async def check(
    samples: Sequence[LoadSample],
    *,
    target: Target,
    connections: Connections,
    timeout: float,
    on_done: OnDone,
) -> tuple[Difference, ...]:
    """Those of `samples` whose answer differs alone. Ones that failed under load are left out."""
    good = [sample for sample in samples if sample.reading.problem is None]
    again = await run(
        [sample.ask for sample in good],
        concurrency=1,
        target=target,
        connections=connections,
        timeout=timeout,
        on_done=on_done,
    )
    return tuple(
        Difference(before.ask, before.reading, after.reading)
        for before, after in zip(good, again.samples, strict=True)
        if not same(before.reading, after.reading)
    )


def same(one: Reading, other: Reading) -> bool:
    """By token ids where the server tells them: different tokens may have one text."""
    return (one.ids, one.text, one.problem) == (other.ids, other.text, other.problem)


def _near(reading: Reading, other: Reading, width: int = 40) -> str:
    """The text around the first difference."""
    texts = reading.text, other.text
    shared = next(
        (index for index, (a, b) in enumerate(zip(*texts, strict=False)) if a != b),
        min(map(len, texts)),
    )
    return reading.text[max(0, shared - width // 2) : shared + width // 2]
