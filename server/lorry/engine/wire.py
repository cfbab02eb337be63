"""Encodes the values that cross to an engine in another process, as MessagePack by msgspec.

A message is a pair: the name of its class, and the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from lorry.core import Base, Capacity, EngineStats, TokenEvent
from lorry.engine.letters import Cancel, Forget, Submit
from lorry_adapters.lora.base import BaseLayout


@dataclass(frozen=True, slots=True)
class Pin:
    """Never evict these contents from the host cache."""

    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop this content from the host cache."""

    digest: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the current step."""


@dataclass(frozen=True, slots=True)
class StartLine:
    """A line for people during the start."""

    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine has started."""

    base: Base
    layout: BaseLayout
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The engine cannot start; `kind` is a class of `lorry.errors`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class TokenEvents:
    events: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers have changed since the last message."""

    stats: EngineStats


@dataclass(frozen=True, slots=True)
class StepTaken:
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cached:
    """The state of the host cache. The first three count since the start."""

    hits: int
    misses: int
    evictions: int
    bytes: int
    capacity_bytes: int
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Broke:
    """The engine has given up."""


class Codec:
    """Encodes and decodes the messages of one direction. Thread-safe."""

    def __init__(self, kinds: Iterable[type]) -> None:
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
            kind.__name__: msgspec.msgpack.Decoder(kind) for kind in kinds
        }
        self._encoder = msgspec.msgpack.Encoder()
        self._pair = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])

    def encode(self, value: object) -> bytes:
        name = type(value).__name__
        assert name in self._decoders, name
        return self._encoder.encode((name, value))

    def decode(self, message: bytes) -> Any:
        name, body = self._pair.decode(message)
        return self._decoders[name].decode(body)


TO_ENGINE = Codec((Submit, Cancel, Forget, Pin, Discard, Stop))
FROM_ENGINE = Codec((StartLine, Ready, StartRefused, TokenEvents, Stats, StepTaken, Cached, Broke))
