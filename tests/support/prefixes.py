"""A scheduler with a prefix cache and a toy model, and what a test asks of them."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.core import Pooling, Request
from support.engine_fakes import CALLED, PREFIX, PROMPT
from support.scheduling import Bench

LONG = list(range(10, 23))
"""Three blocks and one token."""


def bench(**more: int | bool) -> Bench:
    """One with a prefix cache; every adapter has arrived."""
    made: Bench

    def path_of(digests: Sequence[str], _: Pooling | None) -> str | None:
        return "toy" if all(map(made.residency.holds, digests)) else None

    made = Bench(path_of=path_of, **more)  # type: ignore[arg-type]
    made.residency.arrived |= {"a", "b", PROMPT, PREFIX, CALLED}
    return made


def one_by_one(made: Bench, *requests: Request) -> None:
    for asked in requests:
        made.add(asked)
        made.finish()


def computed(made: Bench, name: str) -> list[int]:
    """Tokens of each of its rows."""
    return [len(tokens) for step in made.runner.batches for n, _, tokens in step if n == name]


def first_row(made: Bench, name: str) -> int:
    """Where it began."""
    return next(start for step in made.runner.batches for n, start, _ in step if n == name)


def cached(made: Bench, name: str) -> int | None:
    first, *others = [e for e in made.events if e.request_id == name]
    assert all(event.cached is None for event in others)
    return first.cached
