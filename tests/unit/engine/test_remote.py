"""The HTTP side's end of an engine in another process, which a test plays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import pytest

from lorry.core import Base, Capacity, EngineStats, Failure, FailureCode, TokenEvent
from lorry.engine.letters import Cancel, Submit
from lorry.engine.remote import RemoteEngine
from lorry.engine.wire import (
    FROM_ENGINE,
    TO_ENGINE,
    Broke,
    Cached,
    Pin,
    Ready,
    StartLine,
    StartRefused,
    Stats,
    StepTaken,
    Stop,
    TokenEvents,
)
from lorry.errors import ModelError, UnsupportedModel
from lorry.settings import Settings
from lorry_adapters.lora.base import BaseLayout
from support.engine_fakes import request
from support.patience import PATIENCE, wait_until

BASE = Base("b", (), None, "b", "none", frozenset({2}), 64, 100, {})
LAYOUT = BaseLayout("b", "LlamaForCausalLM", 1, None, {})
CAPACITY = Capacity(64, 8, 4, 2)


def send(connection: Connection, *messages: object) -> None:
    for message in messages:
        connection.send_bytes(FROM_ENGINE.encode(message))


def receive(connection: Connection) -> object:
    return TO_ENGINE.decode(connection.recv_bytes())


def echo(connection: Connection, settings: Settings) -> None:
    """Starts, then tells the number of each request's prompt, until it is told to stop. A
    cancelled request kills it."""
    send(connection, StartLine("loading"), Ready(BASE, LAYOUT, CAPACITY))
    while True:
        match receive(connection):
            case Submit(asked):
                send(
                    connection,
                    Stats(EngineStats(running=1)),
                    StepTaken(len(asked.prompt_ids), 0.5),
                    TokenEvents((TokenEvent(asked.id),)),
                )
            case Pin(digests):
                send(connection, Cached(1, 2, 3, 4, 5, digests))
                send(connection, Stats(EngineStats(waiting=7)))
            case Cancel("give up"):
                send(connection, Broke())
            case Cancel("linger"):
                connection.close()
                threading.Event().wait()
            case Cancel():
                os._exit(3)
            case Stop():
                return


def refuse(connection: Connection, settings: Settings) -> None:
    send(connection, StartRefused("UnsupportedModel", f"{settings.model} is odd"))


def die(connection: Connection, settings: Settings) -> None:
    os._exit(7)


@dataclass
class Told:
    events: list[TokenEvent] = field(default_factory=list)
    steps: list[tuple[int, float]] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)

    def emit(self, events: Sequence[TokenEvent]) -> None:
        self.events += events


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def remote(told: Told) -> Iterator[RemoteEngine]:
    said: list[str] = []
    one = RemoteEngine(echo, Settings(), said.append)
    assert said == ["loading"]
    one.connect(
        emit=told.emit,
        on_step=lambda tokens, seconds: told.steps.append((tokens, seconds)),
        on_broken=told.broken.set,
    )
    one.start()
    yield one
    one.stop()


def test_it_is_known_when_it_has_started(remote: RemoteEngine) -> None:
    assert (remote.base, remote.layout, remote.capacity) == (BASE, LAYOUT, CAPACITY)
    assert not remote.broken


def test_what_it_tells_arrives_in_order(remote: RemoteEngine, told: Told) -> None:
    assert remote.offer(Submit(request("r", [1, 2, 3])))
    wait_until(lambda: told.events)
    # The numbers are there before the event that somebody waits for.
    assert told.steps == [(3, 0.5)] and remote.stats.running == 1
    assert told.events == [TokenEvent("r")]


def test_its_host_cache_is_shown(remote: RemoteEngine) -> None:
    remote.cache.pin(frozenset({"a", "b"}))
    wait_until(lambda: remote.stats.waiting == 7)
    stats = remote.cache.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.evictions) == (2, 1, 2, 3)
    assert "a" in remote.cache
    remote.cache.discard("a")
    assert "a" not in remote.cache and "b" in remote.cache


@pytest.mark.parametrize("how", ["give up", "die"])
def test_an_end_that_nobody_asked_for_ends_every_request(
    remote: RemoteEngine, told: Told, how: str
) -> None:
    for name in ("r", "s"):
        remote.offer(Submit(request(name)))
    remote.offer(Cancel(how))
    assert told.broken.wait(PATIENCE)
    ends = {one.request_id: one.failure for one in told.events if one.finish}
    assert ends == dict.fromkeys(("r", "s"), Failure(FailureCode.ENGINE_LOST))
    assert remote.broken and (remote.stats.running, remote.stats.waiting) == (0, 0)
    assert not remote.offer(Submit(request("late")))


def test_a_process_that_lingers_holds_no_request_up(remote: RemoteEngine, told: Told) -> None:
    remote.offer(Submit(request("r")))
    remote.offer(Cancel("linger"))
    wait_until(lambda: any(one.finish for one in told.events))
    assert not told.broken.is_set()
    assert remote._process.is_alive()
    remote._process.kill()
    assert told.broken.wait(PATIENCE)


def test_stopping_ends_its_requests_and_is_no_failure(remote: RemoteEngine, told: Told) -> None:
    remote.offer(Submit(request("r")))
    remote.stop()
    (end,) = [one for one in told.events if one.finish]
    assert end.failure == Failure(FailureCode.ENGINE_STOPPED)
    assert not told.broken.is_set()
    assert not remote.offer(Cancel("r"))


def test_what_keeps_it_from_starting_is_the_error_that_it_would_be_here() -> None:
    with pytest.raises(UnsupportedModel, match="nowhere is odd"):
        RemoteEngine(refuse, Settings(model="nowhere"), lambda line: None)


def test_a_process_that_dies_while_it_starts_is_told() -> None:
    with pytest.raises(ModelError, match=r"ended during its start .ended with code 7."):
        RemoteEngine(die, Settings(), lambda line: None)
