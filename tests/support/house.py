"""The client over a real engine thread and a toy runner, for the length of a `with` block."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lorry.core import SamplingParams, TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.client import EngineClient, Generation
from lorry.engine.letters import Mailbox
from lorry.engine.limits import Limits
from lorry.engine.loop import Engine
from lorry.engine.residency import SlotResidency
from lorry.engine.scheduler import Scheduler
from lorry_adapters.errors import AdapterBroken, UnknownAdapter
from lorry_adapters.lora.slot_table import SlotTable
from lorry_adapters.lora.weights import AdapterWeights
from lorry_adapters.registry.record import AdapterChoice, AdapterRef, Lease
from support.engine_fakes import Gated, constraints_of
from support.patience import PATIENCE

BLOCK = 4
MAX_LEN = 64
VIRTUAL = 10


def ref_of(choice: AdapterChoice) -> AdapterRef:
    """`prompt` has virtual tokens, `called` waits for its call."""
    return AdapterRef(
        choice.name,
        1,
        f"sha256:{choice.name}",
        1.0 if choice.scale is None else choice.scale,
        virtual_tokens=VIRTUAL if choice.name == "prompt" else 0,
        invocation=(8, 9) if choice.name == "called" else (),
    )


class Shelf:
    """The registry's door as the client uses it: any name but `unknown` is an adapter."""

    def __init__(self) -> None:
        self.out = 0
        self.broken: list[tuple[str, str]] = []

    def mark_broken(self, digest: str, why: str) -> AdapterBroken:
        self.broken.append((digest, why))
        return AdapterBroken(why)

    def acquire(self, choices: Sequence[AdapterChoice]) -> Lease:
        if any(choice.name == "unknown" for choice in choices):
            raise UnknownAdapter("no adapter 'unknown'")
        refs = tuple(map(ref_of, choices))
        self.out += 1

        def give_back() -> None:
            self.out -= 1

        return Lease(refs, give_back)

    def virtual_tokens(self, choices: Sequence[AdapterChoice]) -> int:
        return sum(ref.virtual_tokens for ref in map(ref_of, choices) if ref.scale)


@dataclass
class House:
    client: EngineClient
    engine: Engine
    runner: Gated
    shelf: Shelf

    async def submit(
        self, prompt: Sequence[int] = (1, 2), new: int = 3, *adapters: str
    ) -> Generation:
        choices = [AdapterChoice(name) for name in adapters]
        return await self.client.submit(prompt, SamplingParams(new), choices)


@contextmanager
def opened(max_queue: int = 100, blocks: int = 32) -> Iterator[House]:
    mailbox, slots, shelf = Mailbox(), SlotTable(2), Shelf()
    residency = SlotResidency(
        slots,
        fetch=lambda digest: AdapterWeights(digest, {}, 0),
        place=lambda slot, weights: None,
        wake=mailbox.wake,
    )
    runner = Gated(BLOCK, lambda slot: next(d for d in slots.resident if slots.slot_of(d) == slot))
    scheduler = Scheduler(Limits(4, 32, MAX_LEN), BlockPool(blocks, BLOCK), residency)
    emits: list[Callable[[Sequence[TokenEvent]], None]] = []
    engine = Engine(
        scheduler,
        residency,
        runner,
        mailbox,
        constraints_of(mailbox),
        emit=lambda events: emits[0](events),
    )
    client = EngineClient(engine, shelf, max_queue=max_queue)  # type: ignore[arg-type]
    emits.append(client.emit)
    engine.start()
    try:
        yield House(client, engine, runner, shelf)
    finally:
        if runner.gate is not None:
            runner.gate.release(10_000)
        engine.stop()


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE))

    run.__name__ = test.__name__
    return run


async def whole(generation: Generation) -> list[TokenEvent]:
    return [event async for event in generation]


def tokens(events: Sequence[TokenEvent]) -> list[int]:
    return [one.token.token_id for event in events for one in event.drawn]
