"""One row of the table: how many requests of what kind, and how they are sent."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lorry.bench import arrivals, prompt_texts
from lorry.bench.popularity import DISTINCT, Popularity


@dataclass(frozen=True, slots=True)
class Span:
    """A length, or a range to draw one from, both ends included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        assert 1 <= self.low <= self.high

    def draw(self, dice: random.Random) -> int:
        return dice.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


_LENGTH = Span(64, 64)


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """A load. Closed (`concurrency` requests in flight) or open (`rate` requests a second)."""

    name: str
    requests: int
    concurrency: int | None = None
    rate: float | None = None
    cv: float = 1.0
    """Of the gaps between open arrivals: 1 is Poisson, more is bursts, 0 is a metronome."""
    adapters: int = 0
    """Registered ones to choose from; 0 asks the base."""
    popularity: Popularity = DISTINCT
    random_scales: bool = False
    prompt_words: Span = _LENGTH
    new_tokens: Span = _LENGTH
    system_words: int = 0
    """Words before every prompt. All requests of one adapter, or of the base, have the same."""
    turns: int = 1
    """Requests of a conversation. Each prompt is the previous prompt, its answer and new words, and
    is sent when that answer is complete. Needs a closed load; its `concurrency` then counts
    conversations."""
    warm_up: int = 0
    """Requests before the clock starts."""

    def __post_init__(self) -> None:
        assert (self.concurrency is None) != (self.rate is None)
        assert self.turns == 1 or self.rate is None

    @property
    def shares(self) -> bool:
        """True if prompts begin alike, so that a prefix cache saves work."""
        return self.system_words > 0 or self.turns > 1

    @property
    def load(self) -> str:
        """For the table: `c=8`, `2/s`, `2/s cv 4`."""
        if self.concurrency is not None:
            return f"c={self.concurrency}"
        return f"{self.rate:g}/s" + ("" if self.cv == 1 else f" cv {self.cv:g}")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, before any server's words for it."""

    prompt: str
    adapter: int | None
    scale: float
    new_tokens: int
    at: float
    """Seconds after the start of an open load; 0 in a closed one."""
    turn: int = 0
    """Its index in its conversation."""
    continues: bool = False
    """True if `prompt` only has the words that follow the previous request and its answer."""


SCALES = (0.25, 0.5, 1.0, 1.5)
"""What `random_scales` draws from."""

WARM_UP_TOKENS = 8


def plan(row: WorkloadRow, repeat: int, seed: int = 0) -> tuple[Ask, ...]:
    """The requests of one repeat. The same for the same arguments, on every machine.

    Repeats differ in their prompts: a server that keeps prompts (llama.cpp, vLLM) would
    otherwise skip the work in all but the first.
    """
    return _drawn(row, row.requests, f"{seed}:{repeat}")


def warm_up(row: WorkloadRow, seed: int = 0) -> tuple[Ask, ...]:
    """Short requests with the row's adapters and prompts of its length."""
    return tuple(
        replace(ask, new_tokens=min(ask.new_tokens, WARM_UP_TOKENS), at=0.0)
        for ask in _drawn(row, row.warm_up, f"{seed}:warm-up")
    )


def _drawn(row: WorkloadRow, count: int, salt: str) -> tuple[Ask, ...]:
    dice = random.Random(f"{salt}:{row.name}")
    chats = -(-count // row.turns)
    adapters = row.popularity.draw(chats, row.adapters, dice) if row.adapters else None
    times = [0.0] * count if row.rate is None else arrivals.times(count, row.rate, row.cv, dice)
    asks: list[Ask] = []
    for index in range(count):
        chat, turn = divmod(index, row.turns)
        adapter = None if adapters is None else adapters[chat]
        prompt = prompt_texts.draw(row.prompt_words.draw(dice), dice)
        if row.system_words and turn == 0:
            own = random.Random(f"{salt}:{row.name}:system:{adapter}")
            prompt = f"{prompt_texts.draw(row.system_words, own)} {prompt}"
        scale = dice.choice(SCALES) if row.random_scales else 1.0
        asks.append(
            Ask(
                prompt=prompt,
                adapter=adapter,
                # A conversation keeps its scale.
                scale=asks[-1].scale if turn else scale,
                new_tokens=row.new_tokens.draw(dice),
                at=times[index],
                turn=turn,
                continues=turn > 0,
            )
        )
    return tuple(asks)
