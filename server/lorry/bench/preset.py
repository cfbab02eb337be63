"""The workloads of benchmarks/README.md. End of text is ignored; greedy, streamed; adapters of
rank 16 on all seven projections.

W   prompts of 64 words that share nothing, 64 new tokens
S   prompts that begin alike: system prompts, conversations, and agents that send everything again
    with each result of a tool
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorry.bench.popularity import Popularity
from lorry.bench.workload import Span, WorkloadRow

NAMES = ("W", "S")

BASE_ONE = "base, c=1"
BASE_EIGHT = "base, c=8"
ADAPTER_ONE = "one adapter, c=1"
ADAPTER_EIGHT = "one adapter, c=8"
DISTINCT = "eight adapters, c=8"
SLOTS = "64 adapters, 16 slots, zipf, c=8"
RESIDENT = "64 adapters, 64 slots, zipf, c=8"

SYSTEM = "one system prompt of 1000 words, c=1"
SYSTEMS = "eight adapters, system prompts of 500 words, c=8"
CHATS = "conversations of eight turns, c=4"
AGENTS = "agents of ten steps, c=2"

MANY = 64
ZIPF = Popularity("zipf", 1.5)
_MANY_FLAGS = ("--max-lora-rank", "16", "--max-cpu-loras", "64", "--host-cache-memory", "2GiB")


@dataclass(frozen=True, slots=True)
class Stage:
    """Rows that one server answers."""

    rows: tuple[WorkloadRow, ...]
    flags: tuple[str, ...] = ()
    """Of `lorry serve`, where the server is ours."""


def workload_w(*, zipf: bool, own_server: bool) -> tuple[Stage, ...]:
    """Five rows; with `zipf` two more, on servers with few and with enough slots."""
    rows = (
        WorkloadRow(BASE_ONE, 6, concurrency=1, warm_up=1),
        WorkloadRow(BASE_EIGHT, 24, concurrency=8, warm_up=8),
        WorkloadRow(ADAPTER_ONE, 6, concurrency=1, warm_up=1, adapters=1),
        WorkloadRow(ADAPTER_EIGHT, 24, concurrency=8, warm_up=8, adapters=1),
        WorkloadRow(DISTINCT, 24, concurrency=8, warm_up=8, adapters=8),
    )
    if not zipf:
        return (Stage(rows),)
    slots = WorkloadRow(SLOTS, 48, concurrency=8, warm_up=48, adapters=MANY, popularity=ZIPF)
    if not own_server:
        # How many slots the server has is its owner's affair.
        return (Stage((*rows, slots)),)
    resident = replace(slots, name=RESIDENT)
    return (
        Stage(rows),
        Stage((slots,), ("--max-loras", "16", *_MANY_FLAGS)),
        Stage((resident,), ("--max-loras", str(MANY), *_MANY_FLAGS)),
    )


def workload_s() -> tuple[Stage, ...]:
    """Four rows of prompts that begin alike. The first request of each computes what they share."""
    short, middling, long = Span(32, 32), Span(64, 64), Span(150, 150)
    return (
        Stage(
            (
                WorkloadRow(
                    SYSTEM,
                    8,
                    concurrency=1,
                    prompt_words=short,
                    new_tokens=short,
                    system_words=1000,
                    warm_up=1,
                ),
                WorkloadRow(
                    SYSTEMS,
                    48,
                    concurrency=8,
                    adapters=8,
                    prompt_words=short,
                    new_tokens=middling,
                    system_words=500,
                    warm_up=8,
                ),
                WorkloadRow(
                    CHATS,
                    32,
                    concurrency=4,
                    prompt_words=short,
                    new_tokens=middling,
                    turns=8,
                    warm_up=4,
                ),
                WorkloadRow(
                    AGENTS,
                    20,
                    concurrency=2,
                    prompt_words=long,
                    new_tokens=short,
                    system_words=300,
                    turns=10,
                    warm_up=2,
                ),
            )
        ),
    )
