"""HTTP connections for a load: one request at a time each, kept open, next to nothing in between.

Why not httpx: the generator shares the processor with the server it measures, and a general
client spends many times more of it on every streamed token (benchmarks/README.md has the
figures).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import SplitResult, urlsplit

from lorry.bench.answer import AnswerReader, BenchAnswer, MalformedAnswer
from lorry.errors import LorryError


class BadUrl(LorryError):
    """A URL that no connection can be made to."""


class Broken(Exception):
    """The connection failed before its answer was whole; the message says how."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    host: str
    port: int
    tls: bool
    prefix: str
    """Path that comes before every route."""

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises BadUrl."""
        try:
            parts: SplitResult = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadUrl(f"{url} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadUrl(f"{url} is no http:// or https:// URL")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    def head(self, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append(f"content-length: {length}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = AnswerReader()
        self._whole: asyncio.Future[BenchAnswer] | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self._whole is None:
            self.close()
            return
        try:
            self._reader.feed(data, now)
        except MalformedAnswer as error:
            self._fail(str(error))
            self.close()
            return
        if self._reader.done:
            if not self._reader.answer.keeps_open:
                self.close()
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._whole is None:
            return
        try:
            self._reader.closed()
        except MalformedAnswer as broken:
            self._fail(str(error or broken))
        else:
            self._finish()

    async def exchange(self, request: bytes) -> BenchAnswer:
        """Send and wait for the whole answer. Raises Broken."""
        assert self._transport is not None and self._whole is None
        self._reader = AnswerReader()
        self._whole = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._whole
        finally:
            if self._whole is not None:
                # Cancelled: what still comes belongs to nobody.
                self._whole = None
                self.close()

    @property
    def heard(self) -> bool:
        """Anything of the current answer has come."""
        return self._reader.answer.status != 0

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _finish(self) -> None:
        whole, self._whole = self._whole, None
        if whole is not None and not whole.done():
            whole.set_result(self._reader.answer)

    def _fail(self, reason: str) -> None:
        whole, self._whole = self._whole, None
        if whole is not None and not whole.done():
            whole.set_exception(Broken(reason))


@dataclass(eq=False)
class Connections:
    """As many connections to one place as there are requests in flight."""

    place: Address
    headers: Mapping[str, str] = field(default_factory=dict)
    _free: list[Wire] = field(default_factory=list)
    _all: set[Wire] = field(default_factory=set)

    async def send(self, method: str, path: str, body: bytes = b"") -> BenchAnswer:
        """Raises Broken."""
        request = self.place.head(method, path, self.headers, len(body)) + body
        while self._free:
            wire = self._free.pop()
            if not wire.open:
                self._all.discard(wire)
                continue
            try:
                return await self._exchange(wire, request)
            except Broken:
                # Servers close what was idle for long; that crossed our request on its way.
                if wire.heard:
                    raise
        try:
            return await self._exchange(await self._connect(), request)
        except OSError as error:
            raise Broken(error.strerror or str(error) or type(error).__name__) from error

    async def close(self) -> None:
        for wire in self._all:
            wire.close()
        self._all.clear()
        self._free.clear()
        await asyncio.sleep(0)

    async def _connect(self) -> Wire:
        _, wire = await asyncio.get_running_loop().create_connection(
            Wire,
            self.place.host,
            self.place.port,
            ssl=ssl.create_default_context() if self.place.tls else None,
        )
        self._all.add(wire)
        return wire

    async def _exchange(self, wire: Wire, request: bytes) -> BenchAnswer:
        try:
            answer = await wire.exchange(request)
        except Broken:
            self._all.discard(wire)
            raise
        if wire.open:
            self._free.append(wire)
        else:
            self._all.discard(wire)
        return answer
